"""From a recipe to a plan, and what the plan says: `prepared` makes it once for all who need it, `plan` lays the output
out, `compatibility` asks whether the models fit together, `checking` whether the machine can do it."""
