"""Models: imported or made, trained in a process of their own, and what their files hold."""
