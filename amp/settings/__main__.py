"""Writes docs/settings.md: `python -m amp.settings > docs/settings.md`."""

from amp.settings.reading.meanings import settings_page

if __name__ == "__main__":
    print(settings_page(), end="")
