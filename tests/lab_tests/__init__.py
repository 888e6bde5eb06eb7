"""The lab's own tests: an instrument is proven before it measures."""
