"""Which class does every region of a photograph belong to, when a few are marked?"""
