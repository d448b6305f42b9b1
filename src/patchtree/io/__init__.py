"""Reading and writing files: images and masks, each by what it is."""
