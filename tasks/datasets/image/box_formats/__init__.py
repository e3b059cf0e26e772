"""What label files say of the objects in pictures: one reader a format, all with the same answer (`labels`)."""
