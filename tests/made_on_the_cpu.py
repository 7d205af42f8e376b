"""Where `src` makes tensors without naming a device, and why that is right there.

A key is a file under `src/actkit`, or a function in it. `test_devices.py` holds that none is
missing and none left over.
"""

SEEDED = "Draws data from a seed, on the CPU, so that they are the same on every machine."
WIRED = "Writes the weights of a toy network, which is made on the CPU and moved whole."
PARAM = "A parameter or buffer of a module, made on the CPU as torch's own are, and moved with it."
STAT = "A statistic: those are kept on the CPU, in float64 where they are sums."
NUMPY = "Comes from SciPy or scikit-learn, which live on the CPU; so does what it meets."
NUMBERS = "Numbers of a result, made of Python's; they meet none of the network's tensors."
INDEX = "Indexes only: a CPU index may index tensors of any device."
INPUT = "Becomes an input, which `encode` moves to the network."
EDIT = "Becomes part of an edit, which `like` moves to its site."
CHECK = "Looked at to check an argument; it meets nothing."
MASKS = "Masks of a graph's edges are kept on the CPU, with its scores."
EMPTY = "Stands for nothing before the first value; no arithmetic meets it."
CAST = "A tensor already; the call only tells the type checker so."
RES = "What a reading says that has seen no rows."

REASONS: dict[str, str] = {
    "cli/chat.py:Chat._said": EDIT,
    "core/run/alone.py:_of_row": CHECK,
    "core/edits/edit.py:Edit._is_by_rows": CHECK,
    "core/run/forms.py:on_device": INPUT,
    "core/run/inputs.py:Encoder._media": INPUT,
    "core/run/inputs.py:Encoder._given": INPUT,
    "core/run/runner.py:Runner._record": "Rows of a run that recorded nothing.",
    "core/edits/operations.py:Add.needs_no_axes": CHECK,
    "core/edits/operations.py:Scale.needs_no_axes": CHECK,
    "core/run/padding.py:Proof._values": INPUT,
    "core/run/tokens.py:TokenCalls.padded": INPUT,
    "export/weight_places.py": "Baking computes on the CPU in float64 and moves the result.",
    "export/llama_cpp.py:_file": "Control vectors are files: they are read on the CPU.",
    "export/llama_cpp.py:_vector": "Control vectors are files: they are made on the CPU.",
    "core/edits/edit.py:_checked": EDIT,
    "core/run/inputs.py:Encoder.__call__": INPUT,
    "core/run/inputs.py:Encoder._rows_of_arrays": INPUT,
    "core/sweep/derivative.py:_dual_zeros": (
        "A trial of torch's own forward derivatives; it meets nothing."
    ),
    "export/lower.py": "Lowering computes on the CPU in float64 and moves the result.",
    "maths/marchenko_pastur.py": STAT,
    "core/edits/operations.py:Add.neutral": CHECK,
    "core/edits/operations.py:Scale.extent": CHECK,
    "core/sweep/sweep.py:_valid": "Columns that are asked, kept on the CPU; they index only.",
    "core/sweep/sweep.py:most_rows": "Only its shape is read.",
    "core/sweep/base_run.py:BaseRun.__init__": (
        "Columns that are asked, kept on the CPU; they index only."
    ),
    "core/sweep/base_run.py:BaseRun._picked": INDEX,
    "core/edits/where.py": CHECK,
    "data/_backcopy.py": SEEDED,
    "data/_images.py": "Bundled data are on the CPU; `encode` moves them.",
    "data/_photos.py": "Bundled data are on the CPU; `encode` moves them.",
    "find/neurons/value_vectors.py:ValueVectors.concept": (
        "Promoted tokens are looked up on the CPU."
    ),
    "guard/monitors/eigen_track.py": "The detector and its windows live on the CPU.",
    "nn/attention/kv_bias_attention.py:KVBiasAttention.__init__": PARAM,
    "read/training/butterfly/_alignment.py": STAT,
    "worlds/bursty.py": SEEDED,
    "read/network/ppl_sparsity/_cett.py:LossCurve.threshold": STAT,
    "read/codes/_patterns.py": "Codes are kept as packed bits, which NumPy packs.",
    "read/classes/_dichotomy.py:by_condition": STAT,
    "read/_eigenvalues.py:decay": STAT,
    "read/_estimators/_entropies.py:_to_neighbour": NUMPY,
    "read/network/task_inference/_family_probe.py:FamilyProbe.posterior": NUMPY,
    "read/information/integration/_groups.py:span_scores": NUMPY,
    "read/training/butterfly/_interpolation.py:gap": NUMBERS,
    "read/training/_massive_curve.py:MassiveCurve.at": NUMPY,
    "anatomy/norm.py:norm_gain": "Only where a norm has no parameters to be beside.",
    "read/_paired_sums.py:blocks": "Rows are where the user has them; arrays on the CPU.",
    "read/streaming/stream_dynamics/_stream_sums.py:StreamSums.add": EMPTY,
    "read/streaming/stream_dynamics/_stream_sums.py:StreamSums.empty": STAT,
    "worlds/task_mixture.py": SEEDED,
    "read/training/critical_period.py:_read": CAST,
    "read/training/deep_linear_ode.py": NUMPY,
    "read/streaming/extreme_tokens.py:ExtremeTokens.result": RES,
    "read/information/info_plane.py:info_plane": NUMBERS,
    "read/similarity/kernel_alignment.py:_View._rows": (
        "Rows are where the user has them; arrays on the CPU."
    ),
    "read/similarity/kernel_alignment.py:_View.finite": STAT,
    "read/similarity/kernel_alignment.py:_aligned": STAT,
    "read/streaming/layer_similarity.py:LayerSimilarity.result": RES,
    "read/network/local_linearity.py:local_linearity": (
        "Sizes of steps; moved to the errors they meet."
    ),
    "read/streaming/massive.py:Massive.result": RES,
    "read/streaming/massive.py:_MassiveState.of": STAT,
    "read/training/massive_dynamics.py": NUMBERS,
    "read/training/massive_forecast.py:MassiveForecast._checked": NUMPY,
    "read/streaming/moments.py:Moments.result": RES,
    "read/spectra/mp_spectrum.py": STAT,
    "read/classes/near_collapse.py:_followed": NUMBERS,
    "read/classes/neural_collapse.py:_classifier": STAT,
    "read/classes/parallelism_score.py": STAT,
    "read/protocol.py": SEEDED,
    "read/similarity/rsa.py:_drawn": (
        "Rows are drawn on the CPU, from NumPy's generator, then indexed."
    ),
    "read/codes/sdr.py": STAT,
    "read/streaming/sinks.py:Sinks.result": RES,
    "read/streaming/sinks.py:_SinksState.of": STAT,
    "read/streaming/sparsity.py:Sparsity.result": RES,
    "read/training/spectral_phases/__init__.py:spectral_phases": NUMBERS,
    "read/streaming/spectrum.py:Spectrum.result": RES,
    "read/training/strategy_tracker/__init__.py:_accuracy": STAT,
    "read/streaming/voids.py:Voids.result": RES,
    "steer/controllers/activation_reasoner/_concepts.py:labelled": INDEX,
    "steer/images/filter_condition/_filter_effect.py": NUMPY,
    "steer/controllers/meta_controller/_internal_rl.py:CodePolicy.__init__": PARAM,
    "steer/maps/manifold_steer/_manifold.py:spaced": INDEX,
    "steer/_measure.py:_prose": INPUT,
    "steer/_tune.py:_points": EDIT,
    "steer/images/attention_redirect.py:AttentionRedirect": EMPTY,
    "steer/images/attention_redirect.py:AttentionRedirect._act": CHECK,
    "steer/images/attention_redirect.py:AttentionRedirect._learn": EDIT,
    "steer/controllers/dac.py:DAC._means": EMPTY,
    "steer/controllers/lqr/__init__.py:LQR": EMPTY,
    "steer/controllers/lqr/__init__.py:LQR.tracking": CAST,
    "steer/maps/manifold_steer/__init__.py": INDEX,
    "steer/controllers/meta_controller/__init__.py:_checked": INPUT,
    "steer/vectors/top_neuron.py:TopNeuron._act": EDIT,
    "steer/maps/tunable_experts.py:MoTE._act": CHECK,
    "store/_format.py:_check_range": CHECK,
    "store/_shards.py:as_rows": "A store is on disk: its rows are on the CPU.",
    "store/_view.py:ColumnView.span": "A store is on disk: its rows are on the CPU.",
    "maths/statistics.py:resampled_means": STAT,
    "worlds/chainer.py": WIRED,
    "trace/reasoning/cot_variables/_chains.py:other_values": SEEDED,
    "trace/training/optogenetics/_clamps.py:previous_pattern": EDIT,
    "trace/_edge_circuit.py": MASKS,
    "trace/edges/acdc/_edge_runs.py:_Run.__init__": EMPTY,
    "trace/edges/acdc/_edge_runs.py:_reached": MASKS,
    "trace/interventions/rome/_facts.py:_log_probs": (
        "Log-probabilities of facts are compared on the CPU."
    ),
    "trace/_graph/__init__.py:Graph.__init__": MASKS,
    "trace/_graph/__init__.py:Port.mapped": CAST,
    "trace/_graph/_stream_parts.py:StreamParts.__init__": INPUT,
    "trace/_head_classes.py:copy_scores": CAST,
    "worlds/labelled_items.py": SEEDED,
    "worlds/icl_network.py:IclNetwork.__init__": PARAM,
    "worlds/icl_network.py:IclNetwork.forward": CAST,
    "trace/_in_context.py:repeated": SEEDED,
    "worlds/induction_model.py:InductionModel.at": "Its data are drawn on the CPU.",
    "trace/_known_circuit.py": "Compared with scores, which are kept on the CPU.",
    "trace/_latent_values.py:LatentValues.fit": CAST,
    "worlds/causal.py:Causal.pairs": SEEDED,
    "worlds/programs.py": SEEDED,
    "trace/nodes/relp/_relevance.py:is_activation": (
        "A try of a module without parameters; it meets nothing."
    ),
    "maths/statistics.py:rank_correlations": NUMPY,
    "trace/_scores/__init__.py:Scores.ranked": "Scores are kept on the CPU.",
    "trace/circuits/double_dissociation/_selective_neurons.py": NUMPY,
    "trace/_task/__init__.py:Task.__getitem__.pick": INDEX,
    "trace/_task/__init__.py:Trial.prompt": CHECK,
    "trace/tasks/repeated_words.py:induction": SEEDED,
    "worlds/toy_transformer.py:reader": WIRED,
    "worlds/trees.py": SEEDED,
    "worlds/two_pairs.py": SEEDED,
    "trace/circuits/interpbench/_wired.py": WIRED,
    "worlds/wiring.py": WIRED,
    "trace/edges/acdc/__init__.py:_prune": MASKS,
    "trace/nodes/causal_trace.py:CausalTrace._score": "Scores are kept on the CPU.",
    "trace/nodes/cna.py:CNA._score": "Scores are kept on the CPU.",
    "trace/heads/component_contrib.py": STAT,
    "trace/circuits/double_dissociation/__init__.py:double_dissociation": NUMBERS,
    "trace/heads/factual_recall.py:first_tokens": INDEX,
    "trace/reasoning/functional_rift.py:bigram_prior": CAST,
    "trace/training/icl_bench/__init__.py:icl_bench": NUMBERS,
    "trace/training/phase_change.py:phase_change": NUMBERS,
    "trace/protocol.py": "Scores are kept on the CPU.",
    "trace/nodes/subnetwork_probing.py:SubnetworkProbing._score": (
        "Edits move it; gradients return."
    ),
    "trace/reasoning/tree_path.py": "Trees and what is read of them are kept on the CPU.",
}
