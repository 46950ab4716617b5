"""Signatures of vLLM 0.32 that our code overrides or calls: a dotted path, and below it the source's signature."""

# Functions and methods that we override or call, and classes' constructors that we bypass.
SIGNATURES = """
# All processes: registration.
vllm.model_executor.models.registry._ModelRegistry.register_model
    (self, model_arch: str, model_cls: type[nn.Module] | str) -> None
vllm.model_executor.models.config.VerifyAndUpdateConfig.verify_and_update_config
    (vllm_config: 'VllmConfig') -> None
vllm.config.vllm.VllmConfig.try_verify_and_update_config
    (self)
vllm.platforms.interface.Platform.get_attn_backend_cls
    (cls, selected_backend: 'AttentionBackendEnum', attn_selector_config: 'AttentionSelectorConfig', num_heads: int |
    None=None) -> str
vllm.utils.import_utils.resolve_obj_by_qualname
    (qualname: str) -> Any
vllm.utils.platform_utils.is_uva_available
    () -> bool
# Command line.
vllm.entrypoints.serve.utils.api_utils.cli_env_setup
    ()
vllm.entrypoints.cli.serve.ServeSubcommand.cmd
    (args: argparse.Namespace) -> None
vllm.entrypoints.cli.serve.ServeSubcommand.subparser_init
    (self, subparsers: argparse._SubParsersAction) -> FlexibleArgumentParser
vllm.entrypoints.cli.serve.ServeSubcommand.validate
    (self, args: argparse.Namespace) -> None
vllm.utils.argparse_utils.FlexibleArgumentParser.error
    (self, message: str) -> NoReturn
vllm.utils.argparse_utils.FlexibleArgumentParser.load_config_file
    (self, file_path: str) -> list[str]
vllm.utils.argparse_utils.FlexibleArgumentParser.parse_args
    (self, args: list[str] | None=None, namespace: Namespace | None=None)
vllm.utils.cpu_resource_utils.get_allowed_cpu_list
    () -> list[LogicalCPUInfo]
vllm.utils.cpu_resource_utils.get_memory_node_info
    (node_id: int=0) -> MemoryNodeInfo
vllm.logger.configure_logging_from_args
    (args: Any) -> 'LoggingConfig'
vllm.logging_utils.uvicorn_logging.create_uvicorn_log_config
    (excluded_paths: list[str] | None=None, log_level: str='info', formatter: Literal['text', 'json']='text') ->
    dict
vllm.logging_utils.uvicorn_logging.UvicornAccessLogFilter.__init__
    (self, excluded_paths: list[str] | None=None)
# API process.
vllm.plugins.endpoint_plugins.interface.EndpointPlugin.attach_router
    (self, app: FastAPI) -> None
vllm.plugins.endpoint_plugins.interface.EndpointPlugin.init_state
    (self, engine_client: 'EngineClient | None', state: State, args: Namespace) -> None
vllm.plugins.endpoint_plugins.interface.attach_endpoint_plugins
    (app: FastAPI, supported_tasks: tuple['SupportedTask', ...]) -> None
vllm.entrypoints.launchers.launcher.serve_http
    (app: FastAPI, sock: socket.socket | None, enable_ssl_refresh: bool=False, peer_loads:
    tuple[MutableSequence[int], int] | None=None, **uvicorn_kwargs: Any)
vllm.entrypoints.serve.utils.api_utils.validate_json_request
    (raw_request: Request)
vllm.entrypoints.serve.utils.api_utils.with_cancellation
    (handler_func)
vllm.entrypoints.openai.chat_completion.api_router.create_chat_completion
    (request: ChatCompletionRequest, raw_request: Request)
vllm.entrypoints.openai.chat_completion.api_router.create_batch_chat_completion
    (request: BatchChatCompletionRequest, raw_request: Request)
vllm.entrypoints.openai.responses.api_router.create_responses
    (request: ResponsesRequest, raw_request: Request)
vllm.entrypoints.anthropic.api_router.create_messages
    (request: AnthropicMessagesRequest, raw_request: Request)
vllm.entrypoints.anthropic.api_router.count_tokens
    (request: AnthropicCountTokensRequest, raw_request: Request)
vllm.entrypoints.openai.chat_completion.serving.OpenAIServingChat.__init__
    (self, engine_client: EngineClient, models: OpenAIServingModels, response_role: str, *, online_renderer:
    'OnlineRenderer', request_logger: RequestLogger | None, chat_template: str | None, chat_template_content_format:
    ChatTemplateContentFormatOption, trust_request_chat_template: bool=False, return_tokens_as_token_ids:
    bool=False, reasoning_parser: str='', enable_auto_tools: bool=False, exclude_tools_when_tool_choice_none:
    bool=False, tool_parser: str | None=None, tool_strict_level: str='auto', enable_prompt_tokens_details:
    bool=False, enable_force_include_usage: bool=False, enable_log_outputs: bool=False, enable_log_deltas:
    bool=True, default_chat_template_kwargs: dict[str, Any] | None=None, enable_per_request_metrics: bool=False) ->
    None
vllm.entrypoints.openai.chat_completion.serving.OpenAIServingChat.create_chat_completion
    (self, request: ChatCompletionRequest, raw_request: Request | None=None) -> AsyncGenerator[str, None] |
    ChatCompletionResponse | ErrorResponse
vllm.entrypoints.openai.chat_completion.serving.OpenAIServingChat.render_chat_request
    (self, request: ChatCompletionRequest) -> tuple[list[ConversationMessage], list[EngineInput]] | ErrorResponse
vllm.entrypoints.openai.chat_completion.serving.OpenAIServingChat.chat_completion_full_generator
    (self, request: ChatCompletionRequest, result_generator: AsyncIterator[RequestOutput], request_id: str,
    model_name: str, conversation: list[ConversationMessage], tokenizer: TokenizerLike, request_metadata:
    RequestResponseMetadata, parser: Parser | None=None, mm_token_counts: dict[str, int] | None=None) ->
    ErrorResponse | ChatCompletionResponse
vllm.entrypoints.openai.chat_completion.serving.OpenAIServingChat.chat_completion_stream_generator
    (self, request: ChatCompletionRequest, result_generator: AsyncIterator[RequestOutput], request_id: str,
    model_name: str, conversation: list[ConversationMessage], tokenizer: TokenizerLike, request_metadata:
    RequestResponseMetadata, chat_template_kwargs: dict[str, Any] | None=None, mm_token_counts: dict[str, int] |
    None=None) -> AsyncGenerator[str, None]
vllm.entrypoints.openai.chat_completion.batch_serving.OpenAIServingChatBatch.chat_completion_full_generator_batch
    (self, request: BatchChatCompletionRequest, generators: list[AsyncGenerator[RequestOutput, None]], request_id:
    str, model_name: str, all_conversations: list[list[ConversationMessage]], tokenizer: TokenizerLike,
    request_metadata: RequestResponseMetadata, parser_cls: type[Parser] | None=None) -> ErrorResponse |
    ChatCompletionResponse
vllm.entrypoints.openai.responses.serving.OpenAIServingResponses.__init__
    (self, engine_client: EngineClient, models: OpenAIServingModels, online_renderer: OnlineRenderer, *,
    request_logger: RequestLogger | None, chat_template: str | None, chat_template_content_format:
    ChatTemplateContentFormatOption, return_tokens_as_token_ids: bool=False, reasoning_parser: str='',
    enable_auto_tools: bool=False, tool_parser: str | None=None, tool_strict_level: str='auto', tool_server:
    ToolServer | None=None, enable_prompt_tokens_details: bool=False, enable_force_include_usage: bool=False,
    enable_per_request_metrics: bool=False, enable_log_outputs: bool=False, default_chat_template_kwargs: dict[str,
    Any] | None=None) -> None
vllm.entrypoints.openai.responses.serving.OpenAIServingResponses.responses_full_generator
    (self, request: ResponsesRequest, sampling_params: SamplingParams, result_generator:
    AsyncIterator[ConversationContext], context: ConversationContext, model_name: str, tokenizer: TokenizerLike,
    request_metadata: RequestResponseMetadata, created_time: int | None=None) -> ErrorResponse | ResponsesResponse
vllm.entrypoints.anthropic.serving.AnthropicServingMessages.__init__
    (self, engine_client: EngineClient, models: OpenAIServingModels, response_role: str, *, online_renderer:
    'OnlineRenderer', request_logger: RequestLogger | None, chat_template: str | None, chat_template_content_format:
    ChatTemplateContentFormatOption, return_tokens_as_token_ids: bool=False, reasoning_parser: str='',
    enable_auto_tools: bool=False, tool_parser: str | None=None, tool_strict_level: str='auto',
    enable_prompt_tokens_details: bool=False, enable_force_include_usage: bool=False, enable_log_outputs:
    bool=False, enable_log_deltas: bool=True, default_chat_template_kwargs: dict[str, Any] | None=None,
    disabled_thinking_effort: AnthropicDisabledThinkingEffortOption='auto')
vllm.entrypoints.anthropic.serving.AnthropicServingMessages.to_chat_completion_request
    (cls, anthropic_request: AnthropicMessagesRequest | AnthropicCountTokensRequest, *, merge_inline_system:
    bool=False, disabled_thinking_effort: AnthropicDisabledThinkingEffort='none') -> ChatCompletionRequest
vllm.entrypoints.anthropic.serving.AnthropicServingMessages.create_messages
    (self, request: AnthropicMessagesRequest, raw_request: Request | None=None) -> AsyncGenerator[str, None] |
    AnthropicMessagesResponse | ErrorResponse
vllm.entrypoints.anthropic.serving.AnthropicServingMessages.count_tokens
    (self, request: AnthropicCountTokensRequest, raw_request: Request | None=None) -> AnthropicCountTokensResponse |
    ErrorResponse
vllm.entrypoints.serve.engine.serving.BaseServing._check_model
    (self, request: AnyRequest | AnyPoolingRequest) -> ErrorResponse | None
vllm.entrypoints.serve.engine.serving.BaseServing._base_request_id
    (raw_request: Request | None, default: str | None=None) -> str | None
vllm.entrypoints.serve.engine.serving.BaseServing.create_error_response
    (message: str | Exception, err_type: str='BadRequestError', status_code: HTTPStatus=HTTPStatus.BAD_REQUEST,
    param: str | None=None) -> ErrorResponse
vllm.entrypoints.openai.chat_completion.protocol.ChatCompletionRequest.to_sampling_params
    (self, max_tokens: int, default_sampling_params: dict) -> SamplingParams
vllm.entrypoints.openai.chat_completion.protocol.BatchChatCompletionRequest.to_chat_completion_request
    (self, messages: list[ChatCompletionMessageParam]) -> ChatCompletionRequest
vllm.entrypoints.openai.responses.protocol.ResponsesRequest.to_sampling_params
    (self, default_max_tokens: int, default_sampling_params: dict | None=None) -> SamplingParams
vllm.renderers.online_renderer.OnlineRenderer.__init__
    (self, model_config: ModelConfig, renderer: BaseRenderer, *, request_logger: RequestLogger | None,
    chat_template: str | None, chat_template_content_format: ChatTemplateContentFormatOption,
    trust_request_chat_template: bool=False, trust_request_mm_kwargs: bool=False, enable_auto_tools: bool=False,
    exclude_tools_when_tool_choice_none: bool=False, tool_parser: str | None=None, reasoning_parser: str |
    None=None, tool_strict_level: str='auto', default_chat_template_kwargs: dict[str, Any] | None=None,
    log_error_stack: bool=False) -> None
vllm.renderers.online_renderer.OnlineRenderer.preprocess_chat
    (self, request: Any, messages: list[Any], default_template: str | None, default_template_content_format:
    ChatTemplateContentFormatOption, default_template_kwargs: dict[str, Any] | None, tool_dicts: list[dict[str,
    Any]] | None=None, parser: type[Parser] | None=None, *, skip_mm_cache: bool=False) ->
    tuple[list[ConversationMessage], list[EngineInput]]
vllm.renderers.online_renderer.OnlineRenderer.adjust_harmony_request
    (self, request: ChatCompletionRequest | ResponsesRequest) -> None
vllm.renderers.online_renderer.OnlineRenderer.render_chat
    (self, request: ChatCompletionRequest, *, skip_mm_cache: bool=False) -> tuple[list[ConversationMessage],
    list[EngineInput]] | ErrorResponse
vllm.renderers.online_renderer.OnlineRenderer.render_responses
    (self, request: ResponsesRequest, *, previous_messages: ResponsesPreviousMessages | None=None,
    previous_response_outputs: list[ResponseOutputItem] | None=None, tool_server: 'ToolServer | None'=None,
    skip_mm_cache: bool=False) -> ResponsesRenderResult | ErrorResponse
vllm.renderers.chat_utils.has_non_text_content
    (messages: Any) -> bool
vllm.entrypoints.generate.base.protocol.validate_request_mm_kwargs
    (*, mm_processor_kwargs: dict[str, Any] | None, media_io_kwargs: dict[str, dict[str, Any]] | None,
    trust_request_mm_kwargs: bool) -> None
vllm.entrypoints.openai.responses.utils.construct_input_messages
    (*, request_instructions: str | None=None, request_input: str | list[ResponseInputOutputItem], prev_msg:
    list[ChatCompletionMessageParam] | None=None, prev_response_output: list[ResponseOutputItem] | None=None)
vllm.renderers.base.BaseRenderer.render_messages
    (self, messages: list['ChatCompletionMessageParam'], params: ChatParams) -> tuple[list['ConversationMessage'],
    DictPrompt]
vllm.renderers.base.BaseRenderer.render_messages_async
    (self, messages: list['ChatCompletionMessageParam'], params: ChatParams) -> tuple[list['ConversationMessage'],
    DictPrompt]
vllm.renderers.base.BaseRenderer._tokenize_prompt
    (self, prompt: TextPrompt, params: TokenizeParams) -> TokensPrompt
vllm.renderers.base.BaseRenderer._build_tokens_prompt
    (token_ids: Sequence[int], prompt: 'TextPrompt', *, offset_mapping: Sequence[tuple[int, int]] | None=None) ->
    'TokensPrompt'
vllm.renderers.base.BaseRenderer.get_mm_processor
    (self) -> 'BaseMultiModalProcessor'
vllm.entrypoints.serve.middleware.authenticate.AuthenticationMiddleware.__init__
    (self, app: ASGIApp, tokens: list[str]) -> None
vllm.entrypoints.serve.middleware.authenticate.AuthenticationMiddleware.__call__
    (self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]
vllm.entrypoints.serve.middleware.authenticate.AuthenticationMiddleware.verify_token
    (self, headers: Headers) -> bool
vllm.entrypoints.serve.exception_handling.error_response.create_error_response
    (message: str | Exception, err_type: str='BadRequestError', status_code: HTTPStatus=HTTPStatus.BAD_REQUEST,
    param: str | None=None) -> ErrorResponse
vllm.entrypoints.serve.exception_handling.handlers.vllm_error.vllm_error_handler
    (req: Request, exc: VLLMError)
vllm.entrypoints.serve.exception_handling.handlers.exception.exception_handler
    (req: Request, exc: Exception)
vllm.entrypoints.serve.exception_handling.utils.sanitize_message
    (message: str) -> str
vllm.exceptions.VLLMValidationError.__init__
    (self, message: str, *, parameter: str | None=None, value: Any=None) -> None
vllm.exceptions.VLLMValidationError.__str__
    (self)
vllm.exceptions.VLLMUnprocessableEntityError.__init__
    (self, message: str, *, parameter: str | None=None, value: Any=None) -> None
vllm.exceptions.VLLMUnprocessableEntityError.__str__
    (self)
vllm.engine.protocol.EngineClient.generate
    (self, prompt: EngineCoreRequest | PromptType | EngineInput | AsyncGenerator[StreamingInput, None],
    sampling_params: SamplingParams, request_id: str, *, prompt_text: str | None=None, lora_request: LoRARequest |
    None=None, tokenization_kwargs: dict[str, Any] | None=None, trace_headers: Mapping[str, str] | None=None,
    priority: int=0, data_parallel_rank: int | None=None, session_id: str | None=None, kv_hints: KvHintsEnvelope |
    None=None, reasoning_ended: bool | None=None, reasoning_parser_kwargs: dict[str, Any] | None=None) ->
    AsyncGenerator[RequestOutput, None]
vllm.engine.protocol.EngineClient.collective_rpc
    (self, method: str, timeout: float | None=None, args: tuple=(), kwargs: dict | None=None)
vllm.v1.engine.output_processor.OutputProcessor.has_unfinished_requests
    (self) -> bool
vllm.engine.protocol.EngineClient.pause_generation
    (self, *, mode: 'PauseMode'='abort', clear_cache: bool=True) -> None
vllm.v1.serial_utils.run_method
    (obj: Any, method: str | bytes | Callable, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any
vllm.multimodal.media.connector.MediaConnector.__init__
    (self, media_io_kwargs: dict[str, dict[str, Any]] | None=None, connection:
    HTTPConnection=global_http_connection, *, allowed_local_media_path: str='', allowed_media_domains: list[str] |
    None=None) -> None
vllm.multimodal.media.connector.MediaConnector.load_from_url
    (self, url: str, media_io: MediaIO[_M], *, fetch_timeout: int | None=None) -> _M
vllm.multimodal.media.connector.MediaConnector.load_from_url_async
    (self, url: str, media_io: MediaIO[_M], *, fetch_timeout: int | None=None) -> _M
vllm.multimodal.media.connector.MediaConnector._load_data_url
    (self, url: str, media_io: MediaIO[_M]) -> _M
vllm.multimodal.media.image.ImageMediaIO.__init__
    (self, image_mode: str | None='RGB', **kwargs) -> None
vllm.multimodal.image.convert_image_mode
    (image: Image.Image, to_mode: str, background_color: tuple[int, int, int] | list[int]=(255, 255, 255)) ->
    Image.Image
vllm.multimodal.image.normalize_image
    (image: Image.Image) -> Image.Image
vllm.multimodal.media.base.MediaIO.get_max_bytes
    (self) -> int | None
vllm.multimodal.media.base.MediaIO.load_bytes
    (self, data: bytes) -> _T
vllm.multimodal.media.base.MediaIO.load_base64
    (self, media_type: str, data: str) -> _T
vllm.multimodal.media.base.MediaIO.load_file
    (self, filepath: Path) -> _T
vllm.connections.HTTPConnection.__init__
    (self, *, reuse_client: bool=True) -> None
vllm.connections.HTTPConnection.get_async_client
    (self) -> aiohttp.ClientSession
vllm.connections.HTTPConnection.get_sync_client
    (self) -> requests.Session
vllm.connections.HTTPConnection.get_bytes
    (self, url: str, *, timeout: float | None=None, allow_redirects: bool=True, max_bytes: int | None=None) -> bytes
vllm.connections.HTTPConnection.async_get_bytes
    (self, url: str, *, timeout: float | None=None, allow_redirects: bool=True, max_bytes: int | None=None) -> bytes
vllm.utils.registry.ExtensionManager.register
    (self, name: str)
vllm.utils.registry.ExtensionManager.load
    (self, cls_name: str, *args, **kwargs) -> Any
vllm.utils.torch_utils.kv_cache_dtype_str_to_dtype
    (kv_cache_dtype: str, model_config: ModelConfig) -> torch.dtype
# Engine core: scheduler and KV cache.
vllm.v1.core.sched.async_scheduler.AsyncScheduler.__init__
    (self, *args, **kwargs) -> None
vllm.v1.core.sched.scheduler.Scheduler.__init__
    (self, vllm_config: VllmConfig, kv_cache_config: KVCacheConfig, structured_output_manager:
    StructuredOutputManager, block_size: int, hash_block_size: int | None=None, mm_registry:
    MultiModalRegistry=MULTIMODAL_REGISTRY, include_finished_set: bool=False, log_stats: bool=False) -> None
vllm.v1.core.sched.scheduler.Scheduler.add_request
    (self, request: Request) -> None
vllm.v1.core.sched.scheduler.Scheduler.schedule
    (self, throttle_prefills: bool=False) -> SchedulerOutput
vllm.v1.core.sched.scheduler.Scheduler._handle_blocked_waiting_request
    (self, request: Request) -> bool
vllm.v1.core.sched.request_queue.RequestQueue.peek_request
    (self) -> Request
vllm.v1.core.sched.scheduler.Scheduler._try_schedule_encoder_inputs
    (self, request: Request, num_computed_tokens: int, num_new_tokens: int, encoder_compute_budget: int,
    shift_computed_tokens: int=0) -> tuple[list[int], int, int, list[int], list[int]]
vllm.v1.core.sched.scheduler.Scheduler._free_blocks
    (self, request: Request)
vllm.v1.core.encoder_cache_manager.EncoderCacheManager.free
    (self, request: Request) -> None
vllm.v1.core.encoder_cache_manager.EncoderCacheManager.get_cached_num_encoder_embeds
    (self, request: Request, input_id: int) -> int | None
vllm.v1.kv_cache_interface.FullAttentionSpec.merge
    (cls, specs: list[Self]) -> Self
vllm.v1.kv_cache_interface.KVCacheSpec.is_uniform_with_collection
    (self, kv_cache_specs: dict[str, KVCacheSpec]) -> bool
vllm.v1.kv_cache_spec_registry.KVCacheSpecRegistry._ensure_registered
    (cls, vllm_config=None) -> None
vllm.v1.kv_cache_spec_registry.KVCacheSpecRegistry.register
    (cls, kvcache_spec_cls: type['KVCacheSpec'], manager_class: type['SingleTypeKVCacheManager'] | None=None,
    uniform_type_base_spec: type['KVCacheSpec'] | None=None) -> None
vllm.v1.core.kv_cache_utils.get_kv_cache_groups
    (vllm_config: VllmConfig, kv_cache_spec: dict[str, KVCacheSpec]) -> list[KVCacheGroupSpec]
vllm.v1.core.kv_cache_utils.is_kv_cache_spec_uniform
    (kv_cache_spec: dict[str, KVCacheSpec]) -> bool
vllm.v1.core.single_type_kv_cache_manager.SingleTypeKVCacheManager.__init__
    (self, kv_cache_spec: KVCacheSpec, block_pool: BlockPool, enable_caching: bool, kv_cache_group_id: int,
    scheduler_block_size: int, dcp_world_size: int=1, pcp_world_size: int=1, needs_kv_cache_zeroing: bool=False,
    max_admission_blocks_per_request: int | None=None) -> None
vllm.v1.core.single_type_kv_cache_manager.SingleTypeKVCacheManager.get_num_blocks_to_allocate
    (self, request_id: str, num_tokens: int, new_computed_blocks: Sequence[KVCacheBlock], total_computed_tokens:
    int, num_local_computed_tokens: int, num_tokens_main_model: int, apply_admission_cap: bool=False, prefill_end:
    int=0) -> int
vllm.v1.core.single_type_kv_cache_manager.SingleTypeKVCacheManager.allocate_new_blocks
    (self, request_id: str, num_tokens: int, num_tokens_main_model: int) -> list[KVCacheBlock]
vllm.v1.core.single_type_kv_cache_manager.FullAttentionManager.cache_blocks
    (self, request: Request, num_tokens: int, retention_interval: int | None=None, *, replay_boundaries:
    Sequence[int]) -> None
# Worker: runners, attention, compilation, LLaVA.
vllm.v1.worker.gpu_worker.Worker.init_device
    (self)
vllm.v1.worker.gpu_worker.Worker.check_health
    (self) -> None
vllm.distributed.device_communicators.shm_broadcast.SpinCondition.__init__
    (self, is_reader: bool, context: zmq.Context, notify_address: str, busy_loop_s: float=1)
vllm.v1.worker.cpu_worker.CPUWorker.init_device
    (self)
vllm.v1.worker.gpu_model_runner.GPUModelRunner.initialize_kv_cache
    (self, kv_cache_config: KVCacheConfig, is_profiling: bool=False, kv_cache_allocation_context:
    AbstractContextManager | None=None) -> None
vllm.v1.worker.gpu_model_runner.GPUModelRunner._build_attention_metadata
    (self, num_tokens: int, num_reqs: int, max_query_len: int, num_tokens_padded: int | None=None, num_reqs_padded:
    int | None=None, ubatch_slices: UBatchSlices | None=None, logits_indices: torch.Tensor | None=None,
    max_num_sampled_tokens: int | None=None, use_spec_decode: bool=False, for_cudagraph_capture: bool=False,
    num_scheduled_tokens: dict[str, int] | None=None, slot_mappings: dict[int, torch.Tensor] | None=None) ->
    tuple[PerLayerAttnMetadata, CommonAttentionMetadata | None]
vllm.v1.worker.gpu_model_runner.GPUModelRunner._on_request_state_removed
    (self, req_id: str, req_state: CachedRequestState | None) -> None
vllm.v1.worker.cpu_model_runner.CPUModelRunner.initialize_kv_cache
    (self, kv_cache_config: KVCacheConfig, is_profiling: bool=False, kv_cache_allocation_context:
    AbstractContextManager | None=None) -> None
vllm.v1.worker.gpu.model_states.resolve_model_state_cls
    (vllm_config: VllmConfig, model: nn.Module) -> type[ModelState]
vllm.v1.worker.gpu.model_states.default.DefaultModelState.__init__
    (self, vllm_config: VllmConfig, model: nn.Module, encoder_cache: EncoderCache | None, device: torch.device)
vllm.v1.worker.gpu.model_states.default.DefaultModelState.add_request
    (self, req_index: int, new_req_data: NewRequestData) -> None
vllm.v1.worker.gpu.model_states.default.DefaultModelState.remove_request
    (self, req_id: str) -> None
vllm.v1.worker.gpu.model_states.default.DefaultModelState.prepare_attn
    (self, input_batch: InputBatch, cudagraph_mode: CUDAGraphMode, block_tables: tuple[torch.Tensor, ...],
    slot_mappings: torch.Tensor, attn_groups: list[list[AttentionGroup]], kv_cache_config: KVCacheConfig,
    for_capture: bool=False, ubatch_idx: int=0, model_specific_attn_metadata: ModelSpecificAttnMetadata | None=None)
    -> dict[str, Any]
vllm.v1.worker.gpu.model_states.interface.ModelState.initialize_kv_cache
    (self, kv_cache_config: KVCacheConfig, block_tables: BlockTables) -> None
vllm.model_executor.layers.attention.attention.Attention.__init__
    (self, num_heads: int, head_size: int, scale: float, num_kv_heads: int | None=None, alibi_slopes: list[float] |
    None=None, use_alibi_sqrt: bool | None=None, cache_config: CacheConfig | None=None, quant_config:
    QuantizationConfig | None=None, logits_soft_cap: float | None=None, per_layer_sliding_window: int | None=None,
    prefix: str='', attn_type: str=AttentionType.DECODER, kv_sharing_target_layer_name: str | None=None,
    mm_prefix_clamp_sliding_window: bool=False, attn_backend: type[AttentionBackend] | None=None, head_size_v: int |
    None=None, **extra_impl_args) -> None
vllm.model_executor.layers.attention.attention.Attention.get_kv_cache_spec
    (self, vllm_config: VllmConfig) -> KVCacheSpec | None
vllm.v1.attention.backend.subclass_attention_backend_with_overrides
    (name_prefix: str, attention_backend_cls: type[AttentionBackend], overrides: dict[str, Any]) ->
    type[AttentionBackend]
vllm.v1.attention.backend.AttentionMetadataBuilder.get_cudagraph_support
    (cls: type['AttentionMetadataBuilder'], vllm_config: 'VllmConfig', kv_cache_spec: 'KVCacheSpec') ->
    AttentionCGSupport
vllm.v1.attention.backends.cpu_attn.CPUAttentionBackend.get_builder_cls
    () -> type['CPUAttentionMetadataBuilder']
vllm.v1.attention.backends.cpu_attn.CPUAttentionBackend.get_impl_cls
    () -> type['CPUAttentionBackendImpl']
vllm.v1.attention.backends.flash_attn.FlashAttentionBackend.get_builder_cls
    () -> type['FlashAttentionMetadataBuilder']
vllm.v1.attention.backends.flash_attn.FlashAttentionBackend.get_impl_cls
    () -> type['FlashAttentionImpl']
vllm.v1.attention.backends.triton_attn.TritonAttentionBackend.get_builder_cls
    () -> type['TritonAttentionMetadataBuilder']
vllm.v1.attention.backends.triton_attn.TritonAttentionBackend.get_impl_cls
    () -> type['TritonAttentionImpl']
vllm.v1.attention.backends.flash_attn.FlashAttentionMetadataBuilder.get_cudagraph_support
    (cls, vllm_config: 'VllmConfig', kv_cache_spec: 'KVCacheSpec') -> AttentionCGSupport
vllm.v1.attention.backends.cpu_attn.CPUAttentionMetadataBuilder.build
    (self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool=False) ->
    CPUAttentionMetadata
vllm.v1.attention.backends.flash_attn.FlashAttentionMetadataBuilder.build
    (self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool=False) ->
    FlashAttentionMetadata
vllm.v1.attention.backends.triton_attn.TritonAttentionMetadataBuilder.build
    (self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool=False) ->
    TritonAttentionMetadata
vllm.v1.attention.backends.cpu_attn.CPUAttentionBackendImpl.forward
    (self, layer: AttentionLayer, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kv_cache:
    torch.Tensor, attn_metadata: CPUAttentionMetadata | None, output: torch.Tensor, output_scale: torch.Tensor |
    None=None, output_block_scale: torch.Tensor | None=None) -> torch.Tensor
vllm.v1.attention.backends.cpu_attn.CPUAttentionBackendImpl.do_kv_cache_update
    (self, layer: torch.nn.Module, key: torch.Tensor, value: torch.Tensor, kv_cache: torch.Tensor, slot_mapping:
    torch.Tensor) -> None
vllm.v1.attention.backends.flash_attn.FlashAttentionImpl.forward
    (self, layer: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kv_cache:
    torch.Tensor, attn_metadata: FlashAttentionMetadata, output: torch.Tensor, output_scale: torch.Tensor |
    None=None, output_block_scale: torch.Tensor | None=None) -> torch.Tensor
vllm.v1.attention.backends.flash_attn.FlashAttentionImpl.do_kv_cache_update
    (self, layer: torch.nn.Module, key: torch.Tensor, value: torch.Tensor, kv_cache: torch.Tensor, slot_mapping:
    torch.Tensor) -> None
vllm.v1.attention.backends.triton_attn.TritonAttentionImpl.forward
    (self, layer: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kv_cache:
    torch.Tensor, attn_metadata: TritonAttentionMetadata, output: torch.Tensor, output_scale: torch.Tensor |
    None=None, output_block_scale: torch.Tensor | None=None) -> torch.Tensor
vllm.v1.attention.backends.triton_attn.TritonAttentionImpl.do_kv_cache_update
    (self, layer: AttentionLayer, key: torch.Tensor, value: torch.Tensor, kv_cache: torch.Tensor, slot_mapping:
    torch.Tensor)
vllm.compilation.decorators.support_torch_compile
    (cls: type[_T] | None=None, *, dynamic_arg_dims: DynamicArgDims | None=None, mark_unbacked_dims: dict[str, int |
    list[int]] | None=None, enable_if: Callable[[VllmConfig], bool] | None=None, is_encoder: bool=False) ->
    Callable[[type[_T]], type[_T]] | type[_T]
vllm.compilation.decorators._model_hash_key
    (fn: Callable[..., Any]) -> str
vllm.compilation.backends.set_model_tag
    (tag: str, is_encoder: bool=False) -> Generator[None, None, None]
vllm.forward_context.get_forward_context
    () -> ForwardContext
vllm.distributed.communication_op.tensor_model_parallel_all_gather
    (input_: torch.Tensor, dim: int=-1) -> torch.Tensor
vllm.model_executor.models.llama.LlamaDecoderLayer.forward
    (self, positions: torch.Tensor, hidden_states: torch.Tensor, residual: torch.Tensor | None) ->
    tuple[torch.Tensor, torch.Tensor]
vllm.model_executor.models.llava.LlavaForConditionalGeneration._parse_and_validate_image_input
    (self, **kwargs: object) -> LlavaImageInputs | None
vllm.model_executor.models.llava.BaseLlavaProcessingInfo.get_max_image_tokens
    (self) -> int
vllm.multimodal.processing.context.BaseProcessingInfo.get_mm_max_tokens_per_item
    (self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int] | None
vllm.model_executor.models.llava.LlavaMultiModalProcessor._get_mm_fields_config
    (self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]) -> Mapping[str,
    MultiModalFieldConfig]
vllm.model_executor.models.llava.BaseLlavaMultiModalProcessor._get_prompt_updates
    (self, mm_items: MultiModalDataItems, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs:
    MultiModalKwargsItems) -> Sequence[PromptUpdate]
vllm.multimodal.processing.inputs.ProcessorInputs.get_mm_hashes
    (self, model_id: str, hash_algorithm: MMHasherAlgorithm) -> MultiModalHashes
vllm.multimodal.registry.MultiModalRegistry.register_processor
    (self, processor: MultiModalProcessorFactory[_I], *, info: ProcessingInfoFactory[_I], dummy_inputs:
    DummyInputsBuilderFactory[_I])
vllm.multimodal.inputs.MultiModalFieldConfig.batched
    (modality: str, *, keep_on_cpu: bool=False)
# Backbones: every class of vLLM that is extended on demand.
vllm.model_executor.layers.attention.mm_encoder_attention.MMEncoderAttention.forward
    (self, *args, **kwargs)
vllm.model_executor.models.clip.CLIPVisionModel.forward
    (self, pixel_values: torch.Tensor, select_layers: list[int] | None=None, feature_select_strategy:
    VisionFeatureSelectStrategy | None=None) -> torch.Tensor
vllm.model_executor.models.config.VerifyAndUpdateConfig.verify_and_update_model_config
    (model_config: 'ModelConfig') -> None
vllm.model_executor.models.interfaces.SupportsMultiModal.embed_input_ids
    (self, input_ids: Tensor, multimodal_embeddings: MultiModalEmbeddings | None=None, *, is_multimodal: Tensor |
    None=None) -> Tensor
vllm.model_executor.models.interfaces.SupportsMultiModal.get_language_model
    (self) -> 'VllmModel'
vllm.model_executor.models.interns1.InternS1ForConditionalGeneration.__init__
    (self, *, vllm_config: VllmConfig, prefix: str='') -> None
vllm.model_executor.models.interns1.InternS1ForConditionalGeneration.embed_multimodal
    (self, **kwargs: object) -> MultiModalEmbeddings
vllm.model_executor.models.interns1.InternS1ForConditionalGeneration.pixel_shuffle
    (self, x, scale_factor=0.5)
vllm.model_executor.models.interns1.InternS1MultiModalProcessor._apply_hf_processor_main
    (self, mm_items: MultiModalDataItems, hf_kwargs: Mapping[str, object]) -> BatchFeature
vllm.model_executor.models.interns1.InternS1MultiModalProcessor._get_mm_fields_config
    (self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]) -> Mapping[str,
    MultiModalFieldConfig]
vllm.model_executor.models.interns1.InternS1MultiModalProcessor._get_prompt_updates
    (self, mm_items: MultiModalDataItems, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs:
    MultiModalKwargsItems) -> Sequence[PromptUpdate]
vllm.model_executor.models.internvl.InternVLChatModel.__init__
    (self, *, vllm_config: VllmConfig, prefix: str='') -> None
vllm.model_executor.models.internvl.InternVLChatModel.embed_multimodal
    (self, **kwargs: object) -> MultiModalEmbeddings
vllm.model_executor.models.internvl.InternVLChatModel.pixel_shuffle
    (self, x, scale_factor=0.5)
vllm.model_executor.models.internvl.InternVLMultiModalProcessor._get_mm_fields_config
    (self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]) -> Mapping[str,
    MultiModalFieldConfig]
vllm.model_executor.models.internvl.InternVLMultiModalProcessor._get_prompt_updates
    (self, mm_items: MultiModalDataItems, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs:
    MultiModalKwargsItems) -> Sequence[PromptUpdate]
vllm.model_executor.models.llama.LlamaAttention.forward
    (self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor
vllm.model_executor.models.llama.LlamaModel.forward
    (self, input_ids: torch.Tensor | None, positions: torch.Tensor, intermediate_tensors: IntermediateTensors |
    None, inputs_embeds: torch.Tensor | None=None, **extra_layer_kwargs) -> torch.Tensor | IntermediateTensors |
    tuple[torch.Tensor, list[torch.Tensor]]
vllm.model_executor.models.llava.LlavaForConditionalGeneration.__init__
    (self, *, vllm_config: VllmConfig, prefix: str='') -> None
vllm.model_executor.models.llava.LlavaForConditionalGeneration.embed_multimodal
    (self, **kwargs: object) -> MultiModalEmbeddings
vllm.model_executor.models.llava_next.LlavaNextForConditionalGeneration.__init__
    (self, *, vllm_config: VllmConfig, prefix: str='') -> None
vllm.model_executor.models.llava_next.LlavaNextForConditionalGeneration._parse_and_validate_image_input
    (self, **kwargs: object) -> LlavaNextImageInputs | None
vllm.model_executor.models.llava_next.LlavaNextForConditionalGeneration.embed_multimodal
    (self, **kwargs: object) -> MultiModalEmbeddings
vllm.model_executor.models.llava_next.LlavaNextMultiModalProcessor._get_mm_fields_config
    (self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]) -> Mapping[str,
    MultiModalFieldConfig]
vllm.model_executor.models.qwen2_5_vl.Qwen2_5_VLForConditionalGeneration.__init__
    (self, *, vllm_config: VllmConfig, prefix: str='')
vllm.model_executor.models.qwen2_5_vl.Qwen2_5_VLForConditionalGeneration.embed_multimodal
    (self, **kwargs: object) -> MultiModalEmbeddings
vllm.model_executor.models.qwen2_5_vl.Qwen2_5_VLForConditionalGeneration.forward
    (self, input_ids: torch.Tensor | None, positions: torch.Tensor, intermediate_tensors: IntermediateTensors |
    None=None, inputs_embeds: torch.Tensor | None=None, **kwargs: object) -> torch.Tensor | IntermediateTensors
vllm.model_executor.models.qwen2_5_vl.Qwen2_5_VLForConditionalGeneration.get_mrope_input_positions
    (self, input_tokens: list[int], mm_features: list[MultiModalFeatureSpec]) -> tuple[torch.Tensor, int]
vllm.model_executor.models.qwen2_5_vl.Qwen2_5_VLMultiModalProcessor._get_mm_fields_config
    (self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]) -> Mapping[str,
    MultiModalFieldConfig]
vllm.model_executor.models.qwen2_5_vl.Qwen2_5_VLMultiModalProcessor._get_prompt_updates
    (self, mm_items: MultiModalDataItems, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs:
    MultiModalKwargsItems) -> Sequence[PromptUpdate]
vllm.model_executor.models.qwen2_5_vl.Qwen2_5_VisionTransformer.prepare_encoder_metadata
    (self, grid_thw: Sequence[Sequence[int]], *, max_batch_size: int | None=None, max_frames_per_batch: int |
    None=None, max_window_seqs_per_batch: int | None=None, max_seqlen_override: int | None=None,
    max_seqlen_window_override: int | None=None, device: torch.device | None=None) -> dict[str, torch.Tensor]
vllm.model_executor.models.qwen2_vl.Qwen2VLForConditionalGeneration.__init__
    (self, *, vllm_config: VllmConfig, prefix: str='')
vllm.model_executor.models.qwen2_vl.Qwen2VLForConditionalGeneration.embed_multimodal
    (self, **kwargs: object) -> MultiModalEmbeddings
vllm.model_executor.models.qwen2_vl.Qwen2VLForConditionalGeneration.forward
    (self, input_ids: torch.Tensor | None, positions: torch.Tensor, intermediate_tensors: IntermediateTensors |
    None=None, inputs_embeds: torch.Tensor | None=None, **kwargs: object) -> torch.Tensor | IntermediateTensors
vllm.model_executor.models.qwen2_vl.Qwen2VLForConditionalGeneration.get_mrope_input_positions
    (self, input_tokens: list[int], mm_features: list[MultiModalFeatureSpec]) -> tuple[torch.Tensor, int]
vllm.model_executor.models.qwen2_vl.Qwen2VLMultiModalProcessor._get_mm_fields_config
    (self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]) -> Mapping[str,
    MultiModalFieldConfig]
vllm.model_executor.models.qwen2_vl.Qwen2VLMultiModalProcessor._get_prompt_updates
    (self, mm_items: MultiModalDataItems, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs:
    MultiModalKwargsItems) -> Sequence[PromptUpdate]
vllm.model_executor.models.qwen2_vl.Qwen2VLProcessingInfo.get_mm_max_tokens_per_item
    (self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]
vllm.model_executor.models.qwen3_vl.Qwen3LLMModel.forward
    (self, input_ids: torch.Tensor | None, positions: torch.Tensor, intermediate_tensors: IntermediateTensors |
    None=None, inputs_embeds: torch.Tensor | None=None, deepstack_input_embeds: IntermediateTensors | None=None) ->
    torch.Tensor | IntermediateTensors
vllm.model_executor.models.qwen3_vl.Qwen3VLForConditionalGeneration.__init__
    (self, *, vllm_config: VllmConfig, prefix: str='model')
vllm.model_executor.models.qwen3_vl.Qwen3VLForConditionalGeneration.embed_input_ids
    (self, input_ids: torch.Tensor, multimodal_embeddings: MultiModalEmbeddings | None=None, *, is_multimodal:
    torch.Tensor | None=None) -> torch.Tensor
vllm.model_executor.models.qwen3_vl.Qwen3VLForConditionalGeneration.embed_multimodal
    (self, **kwargs: object) -> MultiModalEmbeddings | None
vllm.model_executor.models.qwen3_vl.Qwen3VLForConditionalGeneration.forward
    (self, input_ids: torch.Tensor | None, positions: torch.Tensor, intermediate_tensors: IntermediateTensors |
    None=None, inputs_embeds: torch.Tensor | None=None, **kwargs: object) -> torch.Tensor | IntermediateTensors
vllm.model_executor.models.qwen3_vl.Qwen3VLForConditionalGeneration.get_mrope_input_positions
    (self, input_tokens: list[int], mm_features: list[MultiModalFeatureSpec]) -> tuple[torch.Tensor, int]
vllm.model_executor.models.qwen3_vl.Qwen3VLMultiModalProcessor._apply_hf_processor_main
    (self, mm_items: MultiModalDataItems, hf_kwargs: Mapping[str, object]) -> BatchFeature
vllm.model_executor.models.qwen3_vl.Qwen3VLMultiModalProcessor._get_mm_fields_config
    (self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]) -> Mapping[str,
    MultiModalFieldConfig]
vllm.model_executor.models.qwen3_vl.Qwen3VLMultiModalProcessor._get_prompt_updates
    (self, mm_items: MultiModalDataItems, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs:
    MultiModalKwargsItems) -> Sequence[PromptUpdate]
vllm.model_executor.models.qwen3_vl_moe.Qwen3VLMoeForConditionalGeneration.__init__
    (self, *, vllm_config: VllmConfig, prefix: str='')
vllm.model_executor.models.siglip.SiglipVisionModel.forward
    (self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool=False, select_layers: list[int] | None=None,
    feature_select_strategy: VisionFeatureSelectStrategy | None=None) -> torch.Tensor
vllm.multimodal.inputs.MultiModalKwargsItems.from_hf_inputs
    (hf_inputs: 'BatchFeature', config_by_key: Mapping[str, MultiModalFieldConfig])
vllm.multimodal.processing.processor.BaseMultiModalProcessor._apply_hf_processor_main
    (self, mm_items: MultiModalDataItems, hf_kwargs: Mapping[str, object]) -> BatchFeature
vllm.multimodal.processing.processor.PromptUpdate.resolve
    (self, item_idx: int) -> 'ResolvedPromptUpdate'
# Batch runner.
vllm.entrypoints.launchers.run_batch.BatchRequestInput.check_type_for_url
    (cls, value: Any, info: ValidationInfo)
vllm.entrypoints.launchers.run_batch.main
    (args: Namespace)
vllm.entrypoints.launchers.api_server.app_state.init_app_state
    (engine_client: EngineClient, state: State, args: Namespace, supported_tasks: tuple['SupportedTask', ...] |
    None=None) -> None
# Offline use.
vllm.entrypoints.llm.LLM.get_default_sampling_params
    (self) -> SamplingParams
vllm.entrypoints.common.offline.OfflineInferenceMixin._preprocess_chat_one
    (self, conversation: list[ChatCompletionMessageParam], chat_template: str | None=None,
    chat_template_content_format: ChatTemplateContentFormatOption='auto', chat_template_kwargs: dict[str, Any] |
    None=None, add_generation_prompt: bool=True, continue_final_message: bool=False, tools: list[dict[str, Any]] |
    None=None, tokenization_kwargs: dict[str, Any] | None=None, mm_processor_kwargs: dict[str, Any] | None=None) ->
    EngineInput
vllm.entrypoints.common.offline.OfflineInferenceMixin._render_and_run_requests
    (self, prompts: Iterable[EngineInput], params: Sequence[SamplingParams | PoolingParams], output_type: type[_O],
    *, lora_requests: Sequence[LoRARequest | None] | None=None, priorities: Sequence[int] | None=None, use_tqdm:
    bool | Callable[..., tqdm]=True)
# Benchmarks.
vllm.benchmarks.serve.benchmark
    (task_type: TaskType, endpoint_type: str, api_url: str, base_url: str, model_id: str, model_name: str,
    tokenizer: TokenizerLike | None, input_requests: list[SampleRequest], logprobs: int | None, request_rate: float,
    burstiness: float, disable_tqdm: bool, num_warmups: int, profile: bool, selected_percentile_metrics: list[str],
    selected_percentiles: list[float], ignore_eos: bool, goodput_config_dict: dict[str, float], max_concurrency: int
    | None, lora_modules: Iterable[str] | None, extra_headers: dict | None, extra_body: dict | None,
    lora_assignment: Literal['random', 'round-robin']='random', ramp_up_strategy: Literal['linear', 'exponential'] |
    None=None, ramp_up_start_rps: int | None=None, ramp_up_end_rps: int | None=None, ready_check_timeout_sec:
    int=600, ssl_context: ssl.SSLContext | bool | None=None, self_timed: bool=False, probe_request_rate: float=0.0)
"""
