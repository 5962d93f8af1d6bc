"""What turns a potential into what a simulator wants: one file per simulator."""
