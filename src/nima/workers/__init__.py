"""One function over many parts (`parallel`), its workers (`server`), and unfinished work (`scratch`)."""
