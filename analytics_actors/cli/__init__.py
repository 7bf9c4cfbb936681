from analytics_actors.cli.main import main

__all__ = ["main"]
