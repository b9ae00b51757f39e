"""What stands in a store, looked at afterwards: compared, or freed where nothing needs it."""
