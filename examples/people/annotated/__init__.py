"""People in free videos, with key points that were read off the frames by eye."""
