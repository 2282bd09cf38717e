"""Attribution methods: where a network's decision comes from."""
