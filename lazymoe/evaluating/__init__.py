"""Is a mixture better than its parts? The same questions for all of them: `tasks` and `questions` are what is asked,
`models` who is asked, `bringing` where these are read, `harness` puts EleutherAI's lm-eval on the layer-streamed pass,
`asking` asks one after the other, `machines` on those of a cluster, `kept` keeps what was answered, `gathering` makes
figures of it, `statistics` says how sure they are, `evaluation` what came out."""
