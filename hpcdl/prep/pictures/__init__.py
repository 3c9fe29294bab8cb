"""What the kinds of pictures share: reading and resizing, pairing of files, lists, masks, boxes."""
