"""The pages: server-rendered, readable without JavaScript; nobody should have to ask what became of a mail."""
