"""Which superpixels of a picture are of the colour of a marked place?"""
