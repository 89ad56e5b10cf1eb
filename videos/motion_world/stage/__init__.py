"""Stage of motion world: curves, bodies, things, scenes, and their drawing through a camera."""
