"""What else of vLLM 0.32 our code counts on: attributes, values, lines of source, options, variables."""

# Attributes that we read or set. Private ones and those that only ``__init__`` assigns are looked up in the source.
ATTRIBUTES = """
# All processes: what registration reads and sets.
vllm.config.vllm.VllmConfig
    additional_config attention_config cache_config compilation_config diffusion_config ec_manager_config
    ec_transfer_config
    kv_transfer_config lora_config model_config offload_config optimization_level parallel_config scheduler_config
    shutdown_timeout speculative_config use_v2_model_runner
vllm.config.scheduler.SchedulerConfig
    disable_hybrid_kv_cache_manager encoder_cache_size long_prefill_token_threshold max_num_batched_tokens
    max_num_encoder_input_tokens max_num_scheduled_tokens max_num_seqs scheduler_cls
vllm.config.parallel.ParallelConfig
    _api_process_count data_parallel_size decode_context_parallel_size enable_dbo pipeline_parallel_size
    prefill_context_parallel_size ubatch_size worker_cls
vllm.config.compilation.CompilationConfig
    cudagraph_mm_encoder cudagraph_mode mode static_forward_context
vllm.config.compilation.CompilationMode
    DYNAMO_TRACE_ONCE NONE VLLM_COMPILE
vllm.config.compilation.CUDAGraphMode
    FULL FULL_DECODE_ONLY NONE has_full_cudagraphs
vllm.config.cache.CacheConfig
    block_size cache_dtype kv_offloading_size user_specified_block_size
vllm.config.offload.OffloadConfig
    offload_backend prefetch uva
vllm.config.offload.PrefetchOffloadConfig
    offload_group_size
vllm.config.offload.UVAOffloadConfig
    cpu_offload_gb
vllm.config.attention.AttentionConfig
    backend backend_per_kind
vllm.v1.attention.backends.registry.AttentionBackendEnum
    FLASH_ATTN TRITON_ATTN
vllm.config.kv_transfer.KVTransferConfig
    kv_connector
vllm.config.ec_manager_config.EncoderCacheManagerConfig
    encoder_cache_manager_cls
vllm.config.ec_transfer.ECTransferConfig
    ec_connector
vllm.config.speculative.SpeculativeConfig
    method
vllm.config.model.ModelConfig
    architecture dtype hf_config hf_text_config max_model_len model_class_overrides multimodal_config rswa_window
    runner_type served_model_name
vllm.config.multimodal.MultiModalConfig
    get_limit_per_prompt limit_per_prompt mm_encoder_only mm_processor_cache_type
vllm.config.multimodal.ImageDummyOptions
    count
vllm.platforms.interface.Platform
    device_type is_cpu is_rocm
# Command line.
vllm.engine.arg_utils.AsyncEngineArgs
    gpu_memory_utilization model
vllm.utils.cpu_resource_utils.LogicalCPUInfo
    numa_node
vllm.utils.cpu_resource_utils.MemoryNodeInfo
    available_memory
vllm.config.logging.LoggingConfig
    pylogging_config_file
# API process.
vllm.plugins.endpoint_plugins.interface.EndpointPlugin
    name required_tasks
vllm.engine.protocol.EngineClient
    errored model_config vllm_config
vllm.renderers.online_renderer.OnlineRenderer
    model_config renderer trust_request_mm_kwargs
vllm.renderers.base.BaseRenderer
    _executor _tokenize_prompt_async tokenizer
vllm.entrypoints.openai.chat_completion.serving.OpenAIServingChat
    engine_client online_renderer renderer
vllm.entrypoints.openai.responses.serving.OpenAIServingResponses
    online_renderer
vllm.entrypoints.openai.chat_completion.protocol.ChatCompletionRequest
    echo max_completion_tokens max_tokens media_io_kwargs mm_processor_kwargs prompt_logprobs truncate_prompt_tokens
    use_beam_search vllm_xargs
vllm.entrypoints.openai.chat_completion.protocol.BatchChatCompletionRequest
    messages
vllm.entrypoints.openai.responses.protocol.ResponsesRequest
    input max_output_tokens media_io_kwargs mm_processor_kwargs vllm_xargs
vllm.entrypoints.anthropic.protocol.AnthropicMessagesRequest
    max_tokens messages
vllm.entrypoints.anthropic.protocol.AnthropicCountTokensRequest
    messages
vllm.entrypoints.anthropic.protocol.AnthropicMessagesResponse
    usage
vllm.entrypoints.openai.chat_completion.protocol.ChatCompletionResponse
    usage
vllm.entrypoints.serve.engine.protocol.UsageInfo
    completion_tokens prompt_tokens
vllm.exceptions.VLLMValidationError
    parameter value
vllm.exceptions.RetryableRequestError
    status_code
vllm.inputs.engine.MultiModalInput
    mm_hashes mm_kwargs mm_placeholders prompt prompt_token_ids type
vllm.inputs.engine.TokensInput
    prompt prompt_token_ids type
vllm.multimodal.inputs.PlaceholderRange
    length offset
vllm.sampling_params.SamplingParams
    clone extra_args max_tokens output_kind temperature
vllm.multimodal.media.connector.MediaConnector
    allowed_media_domains connection media_io_kwargs
vllm.multimodal.media.image.ImageMediaIO
    image_mode rgba_background_color
vllm.multimodal.media.base.MediaWithBytes
    media original_bytes io_config
# Engine core.
vllm.v1.core.sched.scheduler.Scheduler
    current_step encoder_cache_manager encoder_cache_mismatch_reqs kv_cache_config kv_cache_manager max_num_active_reqs
    max_num_encoder_input_tokens max_num_scheduled_tokens pause_state running scheduler_config vllm_config waiting
vllm.v1.core.kv_cache_manager.KVCacheManager
    block_pool coordinator watermark_blocks
vllm.v1.core.kv_cache_coordinator.KVCacheCoordinator
    single_type_managers
vllm.v1.request.Request
    get_num_encoder_embeds mm_features next_decode_eligible_step num_computed_tokens num_output_placeholders
    num_prompt_tokens num_tokens_with_spec request_id resumable sampling_params skip_reading_prefix_cache
vllm.v1.kv_cache_interface.KVCacheConfig
    kv_cache_groups
vllm.v1.kv_cache_interface.KVCacheGroupSpec
    kv_cache_spec layer_names
# Worker.
vllm.v1.worker.gpu_worker.Worker
    model_runner vllm_config
vllm.v1.worker.cpu_worker.CPUWorker
    model_runner
vllm.v1.worker.gpu_model_runner.GPUModelRunner
    input_batch kv_cache_config model requests seq_lens
vllm.v1.worker.gpu_input_batch.InputBatch
    block_table num_computed_tokens_cpu req_ids
vllm.v1.worker.gpu_input_batch.CachedRequestState
    mm_features num_prompt_tokens sampling_params
vllm.v1.worker.block_table.MultiGroupBlockTable
    block_tables
vllm.v1.worker.block_table.BlockTable
    block_size block_table
vllm.v1.core.sched.output.NewRequestData
    mm_features prompt_len req_id sampling_params
vllm.v1.worker.gpu.block_table.BlockTables
    block_sizes input_block_tables
vllm.v1.worker.gpu.input_batch.InputBatch
    num_computed_tokens_np num_reqs num_reqs_after_padding num_scheduled_tokens num_tokens num_tokens_after_padding
    req_ids seq_lens
vllm.v1.worker.gpu.model_states.interface.ModelState
    model
vllm.v1.attention.backend.AttentionBackend
    forward_includes_kv_cache_update get_builder_cls get_impl_cls get_name
vllm.v1.attention.backend.AttentionMetadataBuilder
    layer_names supports_update_block_table vllm_config
vllm.v1.attention.backends.cpu_attn.CPUAttentionMetadata
    slot_mapping
vllm.v1.attention.backends.flash_attn.FlashAttentionMetadata
    slot_mapping
vllm.v1.attention.backends.triton_attn.TritonAttentionMetadata
    slot_mapping
vllm.model_executor.layers.attention.attention.Attention
    attn_backend attn_type backend head_size head_size_v impl kv_sharing_target_layer_name layer_name
    mm_prefix_clamp_sliding_window num_heads num_kv_heads quant_config sliding_window use_alibi_sqrt use_mm_prefix
vllm.v1.attention.backends.cpu_attn.CPUAttentionBackendImpl
    alibi_slopes attn_type logits_soft_cap scale sinks
vllm.v1.attention.backends.flash_attn.FlashAttentionImpl
    alibi_slopes attn_type logits_soft_cap scale sinks
vllm.v1.attention.backends.triton_attn.TritonAttentionImpl
    alibi_slopes attn_type chunk_lookback logits_soft_cap scale sinks use_alibi_sqrt
vllm.forward_context.ForwardContext
    attn_metadata
vllm.model_executor.models.llama.LlamaModel
    layers norm
vllm.model_executor.models.llama.LlamaDecoderLayer
    input_layernorm self_attn
vllm.model_executor.models.llama.LlamaAttention
    attn
vllm.model_executor.layers.attention.mm_encoder_attention.MMEncoderAttention
    head_size scale
vllm.model_executor.models.clip.CLIPEncoderLayer
    self_attn
vllm.model_executor.models.clip.CLIPAttention
    attn
vllm.model_executor.models.siglip.SiglipEncoderLayer
    self_attn
vllm.model_executor.models.siglip.SiglipAttention
    attn
vllm.model_executor.models.llava.LlavaForConditionalGeneration
    config language_model multi_modal_projector vision_tower
vllm.model_executor.models.qwen2_vl.Qwen2VisionTransformer
    blocks spatial_merge_size
vllm.model_executor.models.qwen2_5_vl.Qwen2_5_VisionTransformer
    blocks fullatt_block_indexes spatial_merge_size
vllm.model_executor.models.qwen2_5_vl.Qwen2_5_VisionAttention
    attn
vllm.model_executor.models.qwen3_vl.Qwen3_VisionTransformer
    blocks spatial_merge_size
vllm.model_executor.models.qwen3_vl.Qwen3VLForConditionalGeneration
    multiscale_dim use_deepstack visual visual_dim
vllm.model_executor.models.interns1.InternS1ForConditionalGeneration
    downsample_ratio vision_tower
vllm.model_executor.models.interns1_vit.InternS1VisionEncoder
    layer
vllm.model_executor.models.internvl.InternVLChatModel
    downsample_ratio vision_model
vllm.model_executor.models.intern_vit.InternVisionEncoder
    layers
vllm.multimodal.processing.processor.BaseMultiModalProcessor
    info
# Offline and benchmarks.
vllm.entrypoints.llm.LLM
    llm_engine renderer
vllm.benchmarks.datasets.datasets.SampleRequest
    chat_messages expected_output_len prompt prompt_len request_id
"""

# Every field of classes that we copy or build field by field, since a new one may have to differ from segment to
# segment; and every option of the engine, since engine/supported.py must refuse those that segments do not work with.
DATACLASSES = """
vllm.v1.attention.backend.CommonAttentionMetadata
    query_start_loc query_start_loc_cpu seq_lens num_reqs num_actual_tokens max_query_len max_seq_len
    block_table_tensor slot_mapping causal logits_indices_padded num_logits_indices max_logits_per_req
    encoder_seq_lens encoder_seq_lens_cpu dcp_local_seq_lens dcp_local_seq_lens_cpu_upper_bound positions
    is_prefilling seq_lens_cpu_upper_bound req_idx mm_req_doc_ranges rswa_prefix_lens replayssm_decode_base_cpu
    _num_computed_tokens_cache _token_to_req_indices_cache
vllm.v1.kv_cache_interface.FullAttentionSpec
    block_size dcp_sharded block_stride_alignment max_tp_shards num_kv_heads head_size dtype head_size_v
    kv_quant_mode page_size_padded num_head_slots state_content_bytes tokens_per_state sliding_window
    attention_chunk_size non_causal
vllm.engine.arg_utils.EngineArgs
    model enable_return_routed_experts return_sampling_mask model_weights served_model_name tokenizer hf_config_path
    runner convert skip_tokenizer_init enable_prompt_embeds tokenizer_mode trust_remote_code allowed_local_media_path
    allowed_media_domains download_dir safetensors_load_strategy safetensors_prefetch_num_threads
    safetensors_prefetch_block_size load_format config_format dtype kv_cache_dtype seed max_model_len
    cudagraph_capture_sizes max_cudagraph_capture_size ir_op_priority distributed_executor_backend
    pipeline_parallel_size master_addr master_port nnodes node_rank distributed_timeout_seconds
    cpu_distributed_timeout_seconds numa_bind numa_bind_nodes numa_bind_cpus device_ids tensor_parallel_size
    prefill_context_parallel_size decode_context_parallel_size dcp_comm_backend dcp_q_replicate
    dcp_kv_cache_interleave_size cp_kv_cache_interleave_size data_parallel_size data_parallel_rank
    data_parallel_start_rank data_parallel_size_local data_parallel_address data_parallel_rpc_port
    data_parallel_hybrid_lb data_parallel_external_lb data_parallel_multi_port_external_lb data_parallel_backend
    enable_hc_sp enable_expert_parallel enable_batch_sharded_sampling enable_ep_weight_filter moe_backend linear_backend
    sparse_indexer_topk_backend all2all_backend enable_elastic_ep elastic_ep_max_dp_size enable_dbo ubatch_size
    dbo_decode_token_threshold dp_sync_interval dbo_prefill_token_threshold disable_nccl_for_dp_synchronization
    eplb_config enable_eplb expert_placement_strategy _api_process_count _api_process_rank max_parallel_loading_workers
    block_size enable_prefix_caching prefix_caching_hash_algo prefix_cache_retention_interval disable_sliding_window
    disable_cascade_attn offload_backend cpu_offload_gb cpu_offload_params offload_group_size offload_num_in_group
    offload_prefetch_step offload_params gpu_memory_utilization kv_cache_memory_bytes max_num_batched_tokens
    max_num_scheduled_tokens long_prefill_token_threshold long_prefill_token_threshold_adaptive max_num_seqs
    max_num_active_seqs max_num_queued_reqs max_num_queued_tokens max_logprobs logprobs_mode use_fp64_gumbel
    enable_trace_replay disable_log_stats aggregate_engine_logging revision code_revision hf_token hf_overrides
    model_class_overrides tokenizer_revision quantization quantization_config allow_deprecated_quantization
    enforce_eager disable_custom_all_reduce enable_shm_tensor_arena language_model_only limit_mm_per_prompt
    enable_mm_embeds interleave_mm_strings media_io_kwargs mm_processor_kwargs mm_processor_cache_gb
    mm_processor_cache_type mm_hasher_algorithm mm_shm_cache_max_object_size_mb mm_encoder_only mm_encoder_tp_mode
    mm_encoder_attn_backend mm_encoder_attn_dtype mm_encoder_fp8_scale_path mm_encoder_fp8_scale_save_path
    mm_encoder_fp8_scale_save_margin io_processor_plugin renderer_num_workers skip_mm_profiling video_pruning_rate
    video_pruning_method mm_tensor_ipc mm_processor_device mm_ipc_gpu_memory_gb mm_device_do_normalize enable_lora
    max_loras max_lora_rank default_mm_loras fully_sharded_loras max_cpu_loras lora_dtype lora_target_modules
    enable_tower_connector_lora specialize_active_lora enable_mixed_moe_lora_format enable_moe_shared_loras
    max_lora_cls_labels ray_workers_use_nsight num_gpu_blocks_override model_loader_extra_config ignore_patterns
    enable_chunked_prefill disable_chunked_mm_input scheduler_reserve_full_isl prefill_schedule_interval watermark
    disable_hybrid_kv_cache_manager structured_outputs_config aux_output_config reasoning_parser reasoning_parser_plugin
    speculative_config spec_method spec_model spec_tokens watermark_config diffusion_config
    show_hidden_metrics_for_version otlp_traces_endpoint collect_detailed_traces per_request_spec_decode_metrics
    kv_cache_metrics kv_cache_metrics_sample custom_histogram_buckets cudagraph_metrics enable_layerwise_nvtx_tracing
    enable_mfu_metrics enable_logging_iteration_details jit_monitor_mode jit_monitor_verbose enable_mm_processor_stats
    scheduling_policy scheduler_cls pooler_config compilation_config attention_config engram_config mamba_config
    kernel_config enable_flashinfer_autotune worker_cls worker_extension_cls profiler_config logging_config log_level
    log_config_file kv_transfer_config kv_events_config ec_transfer_config ec_manager_config reasoning_config
    generation_config enable_sleep_mode sleep_mode_offload_cudagraph sleep_preserve_parameter_names
    enable_cumem_allocator enable_nccl_comm_suspend override_generation_config model_impl attention_backend
    kv_cache_dtype_skip_layers mamba_cache_dtype mamba_ssm_cache_dtype mamba_block_size prefix_match_unit
    mamba_cache_mode enable_mamba_shared_prefix_checkpoint replayssm_buffer_len use_replayssm mamba_backend
    mamba_ssu_algorithm enable_mamba_cache_stochastic_rounding mamba_cache_philox_rounds additional_config
    use_tqdm_on_load pt_load_map_location logits_processors async_scheduling stream_interval kv_sharing_fast_prefill
    swa_bounded_replay optimization_level performance_mode fault_tolerance_config enable_fault_tolerance
    kv_offloading_size kv_offloading_backend tokens_only shutdown_timeout weight_transfer_config
    fail_on_environ_validation gdn_prefill_backend kda_prefill_backend kda_decode_backend
"""

# Values that our code takes for granted.
VALUES = """
vllm.v1.attention.backend.AttentionCGSupport.NEVER.value
    0
vllm.v1.attention.backend.AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE.value
    1
vllm.v1.attention.backend.AttentionCGSupport.UNIFORM_BATCH.value
    2
vllm.v1.attention.backend.AttentionCGSupport.ALWAYS.value
    3
vllm.v1.attention.backends.cpu_attn.CPUAttentionBackend.forward_includes_kv_cache_update
    False
vllm.v1.attention.backends.flash_attn.FlashAttentionBackend.forward_includes_kv_cache_update
    False
vllm.v1.attention.backends.triton_attn.TritonAttentionBackend.forward_includes_kv_cache_update
    False
vllm.config.multimodal.MultiModalConfig.mm_processor_cache_type
    'lru'
vllm.config.parallel.ParallelConfig.worker_cls
    'auto'
vllm.entrypoints.serve.middleware.authenticate.GUARDED_PREFIX
    ('/v1', '/v2', '/inference', '/cohere')
vllm.multimodal.media.connector.MODALITY_IO_MAP
    {'audio': <class 'vllm.multimodal.media.audio.AudioMediaIO'>,
    'image': <class 'vllm.multimodal.media.image.ImageMediaIO'>,
    'video': <class 'vllm.multimodal.media.video.VideoMediaIO'>}
vllm.plugins.DEFAULT_PLUGINS_GROUP
    'vllm.general_plugins'
vllm.plugins.PLATFORM_PLUGINS_GROUP
    'vllm.platform_plugins'
vllm.plugins.IO_PROCESSOR_PLUGINS_GROUP
    'vllm.io_processor_plugins'
vllm.plugins.STAT_LOGGER_PLUGINS_GROUP
    'vllm.stat_logger_plugins'
vllm.plugins.ENDPOINT_PLUGINS_GROUP
    'vllm.endpoint_plugins'
vllm.logger.DEFAULT_LOGGING_CONFIG.handlers.vllm.class
    'logging.StreamHandler'
"""

# Lines that our code depends on as they stand; white space does not count. One fragment per line.
SOURCE = r"""
vllm/config/vllm.py
    cls.verify_and_update_config(self)
vllm/platforms/cpu.py
    if parallel_config.worker_cls == "auto":
vllm/platforms/cuda.py
    if parallel_config.worker_cls == "auto":
vllm/multimodal/cache/factories.py
    return "processor_only"
vllm/utils/argparse_utils.py
    if "--config" in args:
    config_args = self.load_config_file(file_path)
    model_in_config = any(arg == "--model" for arg in config_args)
vllm/logging_utils/uvicorn_logging.py
    "fmt": '%(levelprefix)s %(client_addr)s - "%(request_line)s" %(status_code)s',
    "access_log_filter": {
vllm/entrypoints/launchers/app.py
    attach_endpoint_plugins(app, supported_tasks) init_exception_handler(app)
vllm/entrypoints/launchers/api_server/app_state.py
    await init_endpoint_plugins_state(engine_client, state, args)
vllm/entrypoints/launchers/launcher.py
    app.state.server = server
    lambda: config.http_protocol_class(
    timeout = engine_client.vllm_config.shutdown_timeout
    loop.add_signal_handler(signal.SIGTERM, signal_handler)
vllm/entrypoints/generate/api_router.py
    state.openai_serving_chat = (
    state.openai_serving_chat_batch = (
    state.openai_serving_responses = (
    state.anthropic_serving_messages = (
vllm/entrypoints/openai/chat_completion/api_router.py
    return request.app.state.openai_serving_chat
    return request.app.state.openai_serving_chat_batch
vllm/entrypoints/openai/responses/api_router.py
    return request.app.state.openai_serving_responses
vllm/entrypoints/anthropic/api_router.py
    return request.app.state.anthropic_serving_messages
vllm/entrypoints/openai/chat_completion/serving.py
    return await self.online_renderer.render_chat(request)
    yield f"data: {final_usage_data}\n\n"
    choices=[],
vllm/entrypoints/openai/chat_completion/batch_serving.py
    single_request = request.to_chat_completion_request(messages)
    conversation, engine_prompts = await renderer.preprocess_chat(
vllm/entrypoints/openai/responses/serving.py
    render_result = await self.online_renderer.render_responses(
    final_response = await self.responses_full_generator(
    render_request = request.model_copy(
vllm/entrypoints/anthropic/serving.py
    return f"event: {event}\ndata: {data}\n\n"
    yield wrap_data_with_event(data, "message_delta")
    chat_req = self.to_chat_completion_request(
vllm/renderers/online_renderer.py
    conversation, engine_inputs = await self.preprocess_chat(
    for k in ("mm_processor_kwargs", "cache_salt")
vllm/renderers/chat_utils.py
    return MEDIA_CONNECTOR_REGISTRY.load( envs.VLLM_MEDIA_CONNECTOR,
vllm/utils/registry.py
    return cls(*args, **kwargs)
vllm/envs.py
    "VLLM_MEDIA_CONNECTOR": lambda: os.getenv("VLLM_MEDIA_CONNECTOR", "http"),
vllm/connections.py
    client = await self.get_async_client()
vllm/entrypoints/serve/middleware/register.py
    [key for key in (args.api_key or [envs.VLLM_API_KEY]) if key]
vllm/entrypoints/launchers/run_batch.py
    from .api_server.entry import init_app_state
    await init_app_state(engine_client, state, args, supported_tasks)
    openai_serving_chat = getattr(state, "openai_serving_chat", None)
vllm/v1/core/sched/scheduler.py
    error_req_ids.update(self.encoder_cache_mismatch_reqs)
    self.finish_requests(error_req_ids, RequestStatus.FINISHED_ERROR)
    self._try_schedule_encoder_inputs(request, request.num_computed_tokens, num_new_tokens, encoder_compute_budget,
    self._try_schedule_encoder_inputs(request, num_computed_tokens, num_new_tokens, encoder_compute_budget,
    num_new_tokens = request.num_tokens - num_computed_tokens
    if 0 < long_prefill_token_threshold < num_new_tokens:
    if self.current_step < request.next_decode_eligible_step:
    ready_to_schedule = self._handle_blocked_waiting_request(request)
    if not ready_to_schedule: skip_request(request_queue) continue
    self.waiting.prepend_requests(step_skipped_waiting)
vllm/v1/core/kv_cache_manager.py
    return self.enable_caching and not request.skip_reading_prefix_cache
vllm/v1/core/kv_cache_coordinator.py
    manager.get_num_blocks_to_allocate(request_id, num_tokens, new_computed_blocks[i], total_computed_tokens,
    else num_tokens, num_tokens_main_model,
vllm/v1/core/kv_cache_utils.py
    _ = kv_cache_spec_values[0].merge(kv_cache_spec_values) except AssertionError: return False
    type(specs[0]).merge([*specs, layer_spec]) except (AssertionError, ValueError): continue
    grouped_layers.append(layers[i::num_groups])
vllm/v1/kv_cache_interface.py
    return first_spec.is_uniform_with_collection(kv_cache_specs)
vllm/v1/kv_cache_spec_registry.py
    if _REGISTRY_KVCACHESPEC_LIST: return
vllm/v1/worker/cpu_worker.py
    self.model_runner = CPUModelRunner(self.vllm_config, torch.device("cpu"))
vllm/v1/worker/gpu_model_runner.py
    self._on_request_state_removed(req_id, req_state)
    num_tokens_padded=num_tokens_padded if pad_attn else None,
    num_scheduled_tokens=scheduler_output.num_scheduled_tokens,
    and builder.supports_update_block_table
    cm = copy(cm_base)
vllm/v1/worker/gpu/model_states/__init__.py
    if hasattr(model, "get_model_state_cls"): return model.get_model_state_cls()
vllm/v1/worker/gpu/model_states/default.py
    if cudagraph_mode == CUDAGraphMode.FULL:
vllm/model_executor/layers/attention/attention.py
    raise ValueError(f"Duplicate layer name: {prefix}")
    not self.attn_backend.forward_includes_kv_cache_update
vllm/compilation/decorators.py
    sha256_hash.update(fn.__qualname__.encode())
vllm/compilation/backends.py
    self.prefix = prefix or model_tag
vllm/model_executor/models/llava.py
    require_post_norm=False,
    hidden_states = self.language_model.model(
vllm/multimodal/processing/inputs.py
    "mm_processor_kwargs": mm_processor_kwargs,
vllm/entrypoints/openai/chat_completion/protocol.py
    extra_args: dict[str, Any] = self.vllm_xargs if self.vllm_xargs else {}
vllm/entrypoints/openai/responses/protocol.py
    extra_args: dict[str, Any] = self.vllm_xargs if self.vllm_xargs else {}
vllm/v1/metrics/prometheus.py
    if os.getenv("PROMETHEUS_MULTIPROC_DIR") is not None:
"""

# Text whose arrival would collide with what we do.
ABSENT = """
vllm/model_executor/models/llava.py
    get_model_state_cls
vllm/model_executor/models/llava_next.py
    get_model_state_cls
vllm/model_executor/models/qwen2_vl.py
    get_model_state_cls
vllm/model_executor/models/qwen2_5_vl.py
    get_model_state_cls
vllm/model_executor/models/qwen3_vl.py
    get_model_state_cls
vllm/model_executor/models/interns1.py
    get_model_state_cls
vllm/model_executor/models/internvl.py
    get_model_state_cls
"""

# Options of ``vllm serve`` that we read or set by name, and variables of vLLM's environment.
ARGUMENTS = """
additional_config api_key disable_access_log_for_endpoints dtype enforce_eager gpu_memory_utilization grpc
h11_max_header_count kv_cache_memory_bytes limit_mm_per_prompt log_config_file log_level logging_config
max_num_batched_tokens model model_tag served_model_name shutdown_timeout uvicorn_log_level
"""

ENVIRONMENT = """
VLLM_API_KEY VLLM_CONFIGURE_LOGGING VLLM_CPU_KVCACHE_SPACE VLLM_ENABLE_V1_MULTIPROCESSING
VLLM_KEEP_ALIVE_ON_ENGINE_DEATH VLLM_LOGGING_CONFIG_PATH VLLM_LOGGING_LEVEL VLLM_MEDIA_CONNECTOR VLLM_NO_USAGE_STATS
VLLM_PLUGINS VLLM_USE_EXPERIMENTAL_PARSER_CONTEXT VLLM_USE_RUST_FRONTEND VLLM_USE_V2_MODEL_RUNNER
VLLM_WEIGHT_OFFLOADING_DISABLE_UVA
"""
