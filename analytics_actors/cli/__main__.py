from analytics_actors.cli.main import main

main()
