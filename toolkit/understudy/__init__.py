"""understudy: short-lived systemd services for tests, beside production."""
