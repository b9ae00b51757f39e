"""When to change each key of a configuration. A test holds that each key has its line, and no line is "
"without a key."""

from __future__ import annotations

ADVICE = {
    "name": "Give each configuration its own name: runs, models and pages are found by it.",
    "store": "Share one store between runs of the same texts: what they have in common is made once.",
    "seed": "To repeat the whole run with another order, holdout and questions. For the spread of training "
    "alone, use "
    "`onward run --seeds N`.",
    "benchmark_files": "To work without a network, or to fix the questions. Without it, splits come from the "
    "hub.",
    "price_per_hour": "Set what the machine costs, to be told what a run costs before it begins.",
    "corpus.sources.name": "Another name makes other document ids, so everything after ingest is made again.",
    "corpus.sources.role": "The role decides where a source is shown, and what a new model is pre-trained on.",
    "corpus.sources.weight": "More replay forgets less and learns the domain more slowly; 0.05 to 0.3 of the "
    "sum is usual. "
    "0 for text that is only to be measured.",
    "corpus.sources.files": "Name folders with `folder/**`. Moved or renamed folders change nothing.",
    "corpus.sources.python_docs": "For the demo and for trials without any text.",
    "corpus.sources.hub.dataset": "To read a dataset of the hub instead of files.",
    "corpus.sources.hub.name": "If the dataset has several configurations.",
    "corpus.sources.hub.split": "If the text is in another split.",
    "corpus.sources.hub.revision": "Name a commit to read exactly its files, now and later.",
    "corpus.sources.text_field": "If the column of text has another name; `plan` names the columns that there "
    "are.",
    "corpus.sources.order": "`as_given` for text that is sorted on purpose.",
    "corpus.sources.keep_fields": "If other columns are large: name the few that lineage should show, or "
    "none.",
    "corpus.sources.template": "For tables of questions and answers, or of fields that make a text together.",
    "corpus.sources.like.source": "For a large source of which a part is of the domain: name a source of your own "
    "documents; its weight may be 0.",
    "corpus.sources.like.unlike": "If the first replay source is not the text that it should be told from.",
    "corpus.sources.like.least": "Higher keeps less and surer documents; the page about the data shows the shares of both "
    "sources, and documents on both sides.",
    "corpus.sources.where": "To read a part of the files: a kind, a language, a span of years. Two sources of the "
    "same files with opposite conditions give each part a weight of its own.",
    "corpus.sources.decay_weight": "Several times `weight` for the best text, less for the rest: what is read while "
    "the rate falls weighs most.",
    "corpus.sources.max_epochs": "If one small source should be refused rather than read again and again.",
    "corpus.sources.licence": "Before a model is shared: its card says what it was trained on.",
    "corpus.slice_bytes": "Smaller to begin training sooner on small budgets; larger for less overhead. A "
    "budget reads whole "
    "slices, so about a tenth of the text of the largest budget is a good size.",
    "corpus.holdout_fraction": "Raise it if fewer than twenty documents are held out; the run says so.",
    "corpus.holdout_piece": "For a corpus of few long documents, such as books: 2K to 8K.",
    "corpus.max_bad_fraction": "Raise it for files that are known to be damaged; `dropped.parquet` holds each "
    "reason.",
    "corpus.max_epochs": "4 to be refused what repetition hardly helps; the run only warns otherwise.",
    "corpus.dedup.exact": "Off only if copies are wanted, as weights.",
    "corpus.dedup.minhash": "null for text that is known to hold no near-copies; it saves about a tenth of "
    "the corpus time.",
    "corpus.dedup.minhash.ngram": "Longer shingles call fewer documents alike. 5 is what most corpora use.",
    "corpus.dedup.minhash.bands": "More bands miss fewer pairs near the threshold, and cost time.",
    "corpus.dedup.minhash.rows": "Fewer rows compare more pairs. bands and rows together place the curve.",
    "corpus.dedup.minhash.jaccard": "Lower drops looser copies; below 0.5, documents of one template go too.",
    "corpus.dedup.paragraphs": "For web pages of one site, whose menus and footers repeat.",
    "corpus.dedup.paragraphs.min_characters": "Lower cuts shorter repeated lines; headings of textbooks go "
    "then too.",
    "corpus.filter.language": "`any` for code, several languages, or notes of a few words.",
    "corpus.filter.min_language_score": "Lower for text full of names, formulas or code.",
    "corpus.filter.gopher": "Off for text that is no prose: code, tables, poems.",
    "corpus.filter.c4": "Off for code and documentation; it drops lines that are no sentences.",
    "corpus.filter.c4_curly_brackets": "Off for text about programming or with LaTeX.",
    "corpus.filter.c4_end_punctuation": "On for web pages, to cut menus and captions.",
    "corpus.filter.fineweb": "Off for lists, glossaries and reference texts.",
    "corpus.filter.min_edu_score": "2 or 3 to keep only educational pages of a web corpus.",
    "corpus.filter.edu_classifier": "If the source has no score of its own.",
    "corpus.filter.pii": "`off` for text in which numbers and addresses matter, and which holds nothing "
    "personal.",
    "corpus.filter.thresholds": "One rule at a time, where the data page shows that it takes what should "
    "stay. null switches "
    "a rule off.",
    "corpus.decontaminate.ngram": "13 is what is published for most models; shorter finds more, and more by "
    "chance.",
    "corpus.decontaminate.benchmarks": "Name all that will ever be measured: to add one later makes the "
    "corpus again.",
    "corpus.execution.executor": "For a Dask cluster; a single machine needs nothing here.",
    "corpus.execution.workers": "Fewer where memory is short: each takes a few hundred megabytes.",
    "model.base": "A directory, a name on the hub, or `init` for a new model. About 125M to 1B parameters are "
    "meant.",
    "model.base.init.hidden_size": "With layers, it decides the size: about 12·layers·width² parameters.",
    "model.base.init.layers": "Deeper learns better for the same size, and runs slower.",
    "model.base.init.heads": "So that width / heads is 64.",
    "model.base.init.kv_heads": "A third or a quarter of heads, for faster generation of models that are "
    "served.",
    "model.base.init.intermediate_size": "Leave it, unless another model's shape is to be copied.",
    "model.base.init.max_positions": "At least `packing.sequence_length`.",
    "model.base.init.tie_embeddings": "false for models above 1B parameters.",
    "model.base.init.rope_theta": "100,000 or more for sequences longer than 4,096.",
    "model.base.init.tokenizer.vocabulary": "About 4K for a demo, 16K to 32K for one language.",
    "model.base.init.pretrain_tokens": "20 tokens a parameter are a start (Hoffmann et al. 2022); the demo "
    "takes far fewer.",
    "model.revision": "Name a commit to be sure of the weights.",
    "model.licence": "Before a model is shared: its card says what it is made of, and under which licence.",
    "model.dropout": "0.05 to 0.1 if a small text is read many times.",
    "packing.sequence_length": "What the model will meet: 512 is quick on a CPU, 1,024 to 2,048 are usual. At "
    "most the model's "
    "positions.",
    "packing.window_tokens": "Larger wastes less on padding and needs more memory to make; 64M pads well "
    "below 0.1 %.",
    "packing.begin": "`bos` for bases that were pre-trained so (the run says when the base has such a token).",
    "training.token_budgets": "First what is cheap enough to look at, then the next. To append one is free; "
    "to change one "
    "trains its branch again.",
    "training.batch_tokens": "About a thousandth of the first budget on a small one, 256K to 1M on a billion "
    "tokens.",
    "training.learning_rate": "A tenth to a half of the peak that the base was pre-trained with. Lower if "
    "general scores fall, "
    "or the loss climbs.",
    "training.seed": "To see how much of a result is chance: `onward run --seeds 3` sets it.",
    "training.schedule.kind": "`wsd` where budgets follow each other: the trunk is paid for once. `rewarm` as "
    "in the paper.",
    "training.schedule.warmup_tokens": "1 to 10 % of the first budget.",
    "training.schedule.decay_fraction": "0.1 to 0.2; more on small budgets.",
    "training.schedule.final_fraction": "0 to 0.1.",
    "training.optimizer.betas": "Leave them; 0.999 for very small batches.",
    "training.optimizer.eps": "Leave it.",
    "training.optimizer.weight_decay": "Higher (0.3 to 1) if a text is read many times.",
    "training.optimizer.clip": "Lower if single batches throw the loss up.",
    "training.optimizer.states": "`8bit` where memory is short and the model is above 1B parameters.",
    "training.optimizer.stochastic_rounding": "true with precision `bf16_weights`, and only there.",
    "training.optimizer.pull_to_base": "Against forgetting, where no replay text is at hand: 1 to 10.",
    "training.precision": "`fp32` on CPUs without bf16; `bf16_weights` where memory is short.",
    "training.document_masking": "false to train as packers do that let documents see each other.",
    "training.keep_every_tokens": "To measure what happens on the way, with `evaluation.checkpoints`.",
    "training.stop.source": "A domain source that is small beside the budgets: there a model can be trained too long.",
    "training.stop.patience_tokens": "A tenth of the first budget, and one reading of the source at least.",
    "training.stop.min_delta": "0.01 to end also where it hardly falls any more; 0 to end only where it rises or stands.",
    "training.stop.every_tokens": "Leave it null; smaller to go back nearer to the lowest loss.",
    "training.average.checkpoints": "3 to 5, if the last weights vary.",
    "training.average.every_tokens": "A tenth of the decay branch.",
    "training.execution.device": "`cpu` to leave a GPU to others.",
    "training.execution.micro_batch": "Smaller if memory runs out in spite of the rule; the sum is the same.",
    "training.execution.compile": "false while trying things out; true for long runs on a CPU.",
    "training.execution.fuse_products": "false to have the bits of a model whose products are apart; true to try it "
    "on a CPU.",
    "training.execution.gradient_checkpointing": "`selective` or `full` where memory is short and the rule "
    "did not see it.",
    "training.execution.deterministic": "true where a killed run on a GPU must end with the same bytes.",
    "training.execution.threads": "Fewer to leave cores to others.",
    "training.execution.device_memory": "For a GPU that is shared.",
    "training.execution.checkpoint_every": "Shorter where the machine may go at any moment; each takes 12 "
    "bytes a parameter.",
    "training.execution.heldout_every_tokens": "A smaller number for a closer look; null to spend nothing on it.",
    "training.execution.keep_last": "1 where the disk is small.",
    "training.execution.processes": "As many as GPUs.",
    "training.execution.sharding": "`full` only if the model does not fit.",
    "training.execution.nodes": "For more than one machine.",
    "training.execution.rendezvous": "With `nodes`.",
    "training.execution.overlap": "false if the machine's cores are needed elsewhere.",
    "evaluation.domain": "What the domain should improve.",
    "evaluation.general": "What should not be forgotten.",
    "evaluation.own.name": "It is shown with the scores.",
    "evaluation.own.group": "As for the benchmarks above.",
    "evaluation.own.file": "For questions of your own, in one file.",
    "evaluation.own.tasks": "For tasks in the harness's own form.",
    "evaluation.own.held_out": "For questions that cost nothing: the true continuation of a held-out text "
    "among four.",
    "evaluation.own.questions": "More for narrower intervals.",
    "evaluation.limit": "null for numbers to publish; some hundreds for a look: 250 questions have an "
    "interval of about ±6 points.",
    "evaluation.precision": "bf16 on a processor that has it: see evaluation.md for what it changes and saves.",
    "evaluation.overlap": "Less is faster: a token is computed 1 / (1 − overlap) times.",
    "evaluation.checkpoints": "With `training.keep_every_tokens`.",
    "evaluation.prompts": "Beginnings from your own domain, to read what each model makes of them.",
    "evaluation.sample_tokens": "0 for no samples.",
    "merge.interpolate": "[0.25, 0.5, 0.75], where general scores fell: what is between often keeps most of the gain.",
    "merge.average": "4 to 8, with checkpoints over the last tenth or fifth of the trunk, beside or in place of a decay.",
    "merge.instruct": "If the base has a chat model of its own, to get a chat model of the adapted one.",
    "merge.revision": "Name a commit to be sure of the weights.",
    "merge.licence": "Before what is made of the chat model is shared: its card says under which licence that one is.",
    "merge.strength": "Lower if the chat model that comes out lost what was learned.",
    "tracking.mlflow_uri": "For a server that others see too.",
    "tracking.registered_model": "Where several configurations compete for one champion; `none` for mere trials.",
}
"""For each key that takes a value: when to change it. `base.init.…` stands for a new model."""
