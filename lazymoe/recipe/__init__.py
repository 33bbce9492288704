"""What the user wants: the recipe (`schema`), how it names models (`reference`) and prompts (`texts`), and what it
alone tells of whether that can work (`review`). Nothing here looks at a model."""
