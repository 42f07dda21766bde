"""Files and folders: how they are read, named, locked and written whole or not at all."""
