"""Tables, figures and the page of the evidence, from the committed records alone."""
