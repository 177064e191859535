"""The attention of a block, whose heads can be removed: `HeadSlot`, found by structure and proved by a probe."""
