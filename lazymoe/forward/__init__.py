"""Running models that don't fit into memory, a layer at a time: `stream` for dense ones, `mixture` for a layer's
experts, `losses` for what comes out; `tokens` are what goes in. `loading` is for mixtures that do fit."""
