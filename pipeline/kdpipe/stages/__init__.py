"""The five stages: the only room that joins the other rooms."""
