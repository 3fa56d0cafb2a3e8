"""The ground floor: errors, console, flags, files. No torch and no numpy at import."""
