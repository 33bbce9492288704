"""The mixture on the disk: `folder` knows its files' names and what makes it finished, `shards` writes weights."""
