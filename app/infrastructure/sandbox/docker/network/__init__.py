"""The sandboxes' Docker network and the host firewall rules that restrict it."""
