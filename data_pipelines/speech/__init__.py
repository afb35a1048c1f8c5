"""Scripts become sound: engines, timing, stitching, augmentation. It must not know recorded calls or shards."""
