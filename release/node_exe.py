"""What PyInstaller makes a program of: see ``make node-exe``."""

from fabric_client.__main__ import main

main()
