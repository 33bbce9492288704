"""Is a mixture better than its parts? The same questions for all of them: `tasks` are the questions, `models` who is
asked, `bringing` where these are read, `harness` puts EleutherAI's lm-eval on the layer-streamed pass, `kept` keeps
what was answered, `statistics` says how sure the difference is, `evaluation` what came out."""
