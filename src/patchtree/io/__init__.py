"""Reading and writing: images and masks, each by what the file is; every file written whole or not at all."""
