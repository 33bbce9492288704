"""What is measured of a finished mixture (`measuring`), what that means (`report`), and how it looks (`picture`)."""
