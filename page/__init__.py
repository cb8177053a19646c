"""What the page shows: HTML from numbers. Nothing here touches a model."""
