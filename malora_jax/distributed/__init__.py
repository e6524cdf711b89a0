"""Many devices: the mesh that they form, and what is split over which of its axes."""
