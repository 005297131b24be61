"""Other libraries' attention, said in ours."""
