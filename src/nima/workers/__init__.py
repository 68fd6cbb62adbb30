"""One function over many parts of the data (`parallel`), and folders for unfinished work (`scratch`)."""
