"""Every pipeline task as a row: a real pipeline around a tiny model, and inputs for it."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from packaging.version import Version
from PIL import Image

from support import tiny
from support.tiny import SENTENCES, seeded

INSTALLED = Version(transformers.__version__)

Pipeline = transformers.Pipeline


@dataclass(frozen=True)
class Task:
    """One kind of pipeline. `make(**options)` hands the options to `transformers.pipeline`."""

    name: str
    make: Callable[..., Pipeline]
    inputs: Callable[[], list[Any]]  # three different ones, new objects each time
    call: Mapping[str, Any] = field(default_factory=dict)  # what each call of the pipeline needs besides
    variant: str = ""  # tells rows of one task apart
    generates: bool = False  # calls model.generate()
    chunked: bool = False  # a ChunkPipeline: several forward passes may serve one input
    text: bool = False  # the inputs hold text that a tokenizer reads
    batches: bool = True  # takes batch_size > 1
    streams: bool = True  # takes a generator of inputs
    since: str = "4.57"  # first transformers that has it
    until: str = ""  # first transformers that no longer has it
    needs: str = ""  # a package without which it cannot be built

    @property
    def id(self) -> str:
        """A name for pytest, unique in the table."""
        return f"{self.name}[{self.variant}]" if self.variant else self.name


def available(task: Task) -> bool:
    """Whether the installed transformers has the task."""
    base = Version(INSTALLED.base_version)
    return Version(task.since) <= base and not (task.until and base >= Version(task.until))


def missing(task: Task) -> str:
    """The package that the task needs and that is not installed, or an empty string."""
    return task.needs if task.needs and importlib.util.find_spec(task.needs) is None else ""


def pipe(task: str, model: transformers.PreTrainedModel, options: Mapping[str, Any], **parts: Any) -> Pipeline:
    """A pipeline on the CPU, unless the options say otherwise."""
    return transformers.pipeline(task=task, model=model, **{"device": "cpu", **parts, **options})


def _sentences() -> list[str]:
    return [SENTENCES[0], SENTENCES[9], SENTENCES[3]]


PLAIN = ["input_ids", "attention_mask"]  # of models that know no token types
GREEDY = {"max_new_tokens": 5, "do_sample": False}

# ---------------------------------------------------------------------------------------- text


def _bert(task: str, head: str, **config: Any) -> Callable[..., Pipeline]:
    def make(**options: Any) -> Pipeline:
        model = seeded(lambda: getattr(transformers, head)(tiny.bert_config(**config)))
        return pipe(task, model, options, tokenizer=tiny.word_tokenizer())

    return make


def _labels(*names: str) -> dict[str, Any]:
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


def _text_classification(**options: Any) -> Pipeline:
    return pipe("text-classification", tiny.classifier(), options, tokenizer=tiny.word_tokenizer())


def _text_generation(**options: Any) -> Pipeline:
    return pipe("text-generation", tiny.causal_lm(), options, tokenizer=tiny.text_tokenizer())


def _seq2seq(task: str) -> Callable[..., Pipeline]:
    def make(**options: Any) -> Pipeline:
        return pipe(task, tiny.seq2seq_lm(), options, tokenizer=tiny.seq2seq_tokenizer())

    return make


def _decision(**options: Any) -> Pipeline:
    from transformers.decision import DecisionConfig

    return pipe(
        "decision",
        tiny.causal_lm(),
        options,
        tokenizer=tiny.text_tokenizer(),
        decision_config=DecisionConfig(labels={"noul": ["Y", "N"]}),
    )


def _chats() -> list[Any]:
    return [[{"role": "user", "content": sentence}] for sentence in _sentences()]


def _decision_inputs() -> list[Any]:
    return [
        {"state": sentence, "questions": {"good": {"type": "noul", "instructions": "Is it good?"}}}
        for sentence in _sentences()
    ]


def _question_inputs() -> list[Any]:
    return [
        {"question": "Where do I live?", "context": SENTENCES[5]},
        {"question": "When does it leave?", "context": SENTENCES[3]},
        {"question": "What sat on the mat?", "context": SENTENCES[14]},
    ]


TEXT = [
    Task("text-classification", _text_classification, _sentences, text=True),
    Task(
        "token-classification",
        _bert("token-classification", "BertForTokenClassification", **_labels("O", "B-PER", "I-PER", "B-LOC")),
        _sentences,
        text=True,
        chunked=True,
    ),
    Task(
        "fill-mask",
        _bert("fill-mask", "BertForMaskedLM"),
        lambda: ["The [MASK] fox jumps.", "She works at a small [MASK] in Paris.", "[MASK] sat on the mat."],
        text=True,
    ),
    Task("feature-extraction", _bert("feature-extraction", "BertModel"), _sentences, text=True),
    Task(
        "zero-shot-classification",
        _bert(
            "zero-shot-classification",
            "BertForSequenceClassification",
            **_labels("contradiction", "neutral", "entailment"),
        ),
        _sentences,
        call={"candidate_labels": ["politics", "science", "sports"]},
        text=True,
        chunked=True,
    ),
    Task("text-generation", _text_generation, _sentences, call=GREEDY, text=True, generates=True),
    Task("text-generation", _text_generation, _chats, call=GREEDY, variant="chat", text=True, generates=True),
    Task("decision", _decision, _decision_inputs, text=True, batches=False, since="5.23"),
    Task(
        "text2text-generation",
        _seq2seq("text2text-generation"),
        _sentences,
        call=GREEDY,
        text=True,
        generates=True,
        until="5",
    ),
    Task(
        "summarization",
        _seq2seq("summarization"),
        _sentences,
        call={**GREEDY, "min_length": 0},
        text=True,
        generates=True,
        until="5",
    ),
    Task(
        "translation",
        _seq2seq("translation_en_to_de"),
        _sentences,
        call=GREEDY,
        text=True,
        generates=True,
        until="5",
    ),
    Task(
        "question-answering",
        _bert("question-answering", "BertForQuestionAnswering"),
        _question_inputs,
        text=True,
        chunked=True,
        until="5.3",
    ),
]

# ------------------------------------------------------------------------------------- images

SIDE, PATCH = 32, 8
SQUARE = {"height": SIDE, "width": SIDE}
ENCODER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "initializer_range": 0.2,
}
VISION = {**ENCODER, "image_size": SIDE, "patch_size": PATCH}


def _image_processor(name: str, **options: Any) -> Any:
    """The image processor that works without torchvision: a class of its own since 5.0."""
    full = f"{name}ImageProcessor"
    kind = getattr(transformers, f"{full}Pil", None) or getattr(transformers, full)
    return kind(**options)


def _image(seed: int, side: int = SIDE) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _images() -> list[Any]:
    return [_image(seed) for seed in range(3)]


def _vision(task: str, model: str, config: str, processor: str, **settings: Any) -> Callable[..., Pipeline]:
    """Tasks of one model class and one image processor; `size` goes to the processor."""
    size = settings.pop("size", SQUARE)

    def make(**options: Any) -> Pipeline:
        shape = getattr(transformers, config)(**settings)
        built = seeded(lambda: getattr(transformers, model)(shape))
        return pipe(task, built, options, image_processor=_image_processor(processor, size=size))

    return make


SEGFORMER = {
    "num_encoder_blocks": 2,
    "depths": [1, 1],
    "sr_ratios": [2, 1],
    "hidden_sizes": [8, 16],
    "patch_sizes": [3, 3],
    "strides": [4, 2],
    "num_attention_heads": [1, 2],
    "mlp_ratios": [2, 2],
    "decoder_hidden_size": 16,
    "initializer_range": 0.2,
}


class _Nms:
    """The one step of mask generation that torchvision does: keep each box that no better one covers."""

    def post_process_for_mask_generation(self, masks: Any, scores: Any, boxes: Any, threshold: float) -> Any:
        keep: list[int] = []
        for index in scores.argsort(descending=True, stable=True).tolist():
            if all(_overlap(boxes[index], boxes[other]) <= threshold for other in keep):
                keep.append(index)
        kept = [masks[index] for index in keep]
        return [_unpacked(mask) for mask in kept], scores[keep], kept, boxes[keep]


def _unpacked(mask: Mapping[str, Any]) -> np.ndarray:
    # Run lengths of zeros and ones in turn, column by column.
    height, width = mask["size"]
    runs = np.arange(len(mask["counts"])) % 2 == 1
    return np.repeat(runs, mask["counts"]).reshape(width, height).T


def _overlap(one: torch.Tensor, other: torch.Tensor) -> float:
    low, high = torch.maximum(one[:2], other[:2]), torch.minimum(one[2:], other[2:])
    shared = (high - low).clamp(min=0).prod()
    return float(shared / ((one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod() - shared).clamp(min=1))


def _mask_generation(**options: Any) -> Pipeline:
    config = transformers.SamConfig(
        vision_config={
            **VISION,
            "output_channels": 16,
            "num_pos_feats": 8,
            "window_size": 2,
            "global_attn_indexes": [1],
            "mlp_dim": 32,
        },
        prompt_encoder_config={
            "hidden_size": 16,
            "image_size": SIDE,
            "patch_size": PATCH,
            "mask_input_channels": 8,
        },
        mask_decoder_config={
            "hidden_size": 16,
            "mlp_dim": 32,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 16,
        },
    )
    model = seeded(lambda: transformers.SamModel(config))
    base = type(_image_processor("Sam"))
    processor = type(base.__name__, (_Nms, base), {})(size={"longest_edge": SIDE}, pad_size=SQUARE)
    return pipe("mask-generation", model, options, image_processor=processor)


def _keypoint_matching(**options: Any) -> Pipeline:
    config = transformers.SuperGlueConfig(
        keypoint_detector_config={
            "model_type": "superpoint",
            "encoder_hidden_sizes": [8, 8, 8, 8],
            "decoder_hidden_size": 16,
            "descriptor_decoder_dim": 16,
            "keypoint_threshold": 0.0,
            "max_keypoints": 8,
            "border_removal_distance": 2,
        },
        hidden_size=16,
        keypoint_encoder_sizes=[8],
        gnn_layers_types=["self", "cross"],
        num_attention_heads=2,
        sinkhorn_iterations=3,
        initializer_range=0.2,
    )
    model = seeded(lambda: transformers.SuperGlueForKeypointMatching(config))
    return pipe("keypoint-matching", model, options, image_processor=_image_processor("SuperGlue", size=SQUARE))


class _Frame:
    """A decoded frame, as far as the pipeline looks at it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def to_ndarray(self, format: str) -> np.ndarray:  # noqa: A002
        return np.asarray(_image(self.seed))


class _Container:
    """An opened video of eight frames, decided by its name."""

    def __init__(self, path: str) -> None:
        self.path = path

    def seek(self, offset: int) -> None: ...

    def decode(self, video: int) -> list[_Frame]:
        return [_Frame(sum(self.path.encode()) + index) for index in range(8)]


def _video_classification(**options: Any) -> Pipeline:
    from transformers.pipelines import video_classification

    # Only reading the file is replaced: PyAV is a large package, and a test has no video.
    video_classification.av = SimpleNamespace(open=_Container)
    video_classification.np = np
    video_classification.requires_backends = lambda *_: None
    config = transformers.VideoMAEConfig(**VISION, num_frames=4, num_labels=3)
    model = seeded(lambda: transformers.VideoMAEForVideoClassification(config))
    processor = _image_processor("VideoMAE", size={"shortest_edge": SIDE}, crop_size=SQUARE)
    return pipe("video-classification", model, options, image_processor=processor)


IMAGES = [
    Task(
        "image-classification",
        _vision("image-classification", "ViTForImageClassification", "ViTConfig", "ViT", **VISION, num_labels=3),
        _images,
    ),
    Task(
        "image-feature-extraction",
        _vision("image-feature-extraction", "ViTModel", "ViTConfig", "ViT", **VISION),
        _images,
    ),
    Task(
        "image-segmentation",
        _vision(
            "image-segmentation",
            "SegformerForSemanticSegmentation",
            "SegformerConfig",
            "Segformer",
            **SEGFORMER,
            num_labels=3,
        ),
        _images,
    ),
    Task(
        "object-detection",
        _vision(
            "object-detection",
            "YolosForObjectDetection",
            "YolosConfig",
            "Yolos",
            **{**VISION, "image_size": [SIDE, SIDE]},
            num_detection_tokens=5,
            num_labels=3,
            size={"shortest_edge": SIDE, "longest_edge": SIDE},
        ),
        _images,
        call={"threshold": 0.0},
    ),
    Task(
        "depth-estimation",
        _vision("depth-estimation", "GLPNForDepthEstimation", "GLPNConfig", "GLPN", **SEGFORMER, size=None),
        _images,
    ),
    Task(
        "mask-generation",
        _mask_generation,
        _images,
        # 16 points in two chunks of 8; masks of random weights pass no threshold
        call={
            "points_per_crop": 4,
            "points_per_batch": 8,
            "pred_iou_thresh": 0.0,
            "stability_score_thresh": 0.0,
        },
        chunked=True,
        batches=False,
    ),
    Task(
        "keypoint-matching",
        _keypoint_matching,
        lambda: [(_image(seed), _image(seed + 10)) for seed in range(3)],
        batches=False,
        streams=False,
    ),
    Task(
        "image-to-image",
        _vision(
            "image-to-image",
            "Swin2SRForImageSuperResolution",
            "Swin2SRConfig",
            "Swin2SR",
            image_size=SIDE,
            embed_dim=8,
            depths=[1],
            num_heads=[2],
            window_size=4,
            initializer_range=0.2,
            size=None,
        ),
        _images,
        until="5.3",
    ),
    Task("video-classification", _video_classification, lambda: ["a.mp4", "b.mp4", "c.mp4"]),
]

# -------------------------------------------------------------------------------------- audio


def _waves() -> list[Any]:
    random = np.random.default_rng(0)
    return [
        {"raw": random.standard_normal(samples).astype(np.float32), "sampling_rate": tiny.AUDIO_RATE}
        for samples in (4_000, 8_000, 6_000)
    ]


def _arrays() -> list[Any]:
    return [wave["raw"] for wave in _waves()]


WAV2VEC2 = {
    **ENCODER,
    "conv_dim": [8, 8, 8],
    "conv_stride": [10, 4, 4],
    "conv_kernel": [10, 4, 4],
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "num_feat_extract_layers": 3,
    "classifier_proj_size": 16,
}

LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"]


def _wav2vec2_features() -> Any:
    return transformers.Wav2Vec2FeatureExtractor(sampling_rate=tiny.AUDIO_RATE, return_attention_mask=True)


def _audio_classification(**options: Any) -> Pipeline:
    config = transformers.Wav2Vec2Config(**WAV2VEC2, num_labels=3)
    model = seeded(lambda: transformers.Wav2Vec2ForSequenceClassification(config))
    return pipe("audio-classification", model, options, feature_extractor=_wav2vec2_features())


def _speech_ctc(**options: Any) -> Pipeline:
    config = transformers.Wav2Vec2Config(**WAV2VEC2, vocab_size=len(LETTERS))
    model = seeded(lambda: transformers.Wav2Vec2ForCTC(config))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "vocab.json")
        path.write_text(json.dumps({letter: index for index, letter in enumerate(LETTERS)}))
        tokenizer = transformers.Wav2Vec2CTCTokenizer(str(path))
    return pipe(
        "automatic-speech-recognition",
        model,
        options,
        tokenizer=tokenizer,
        feature_extractor=_wav2vec2_features(),
    )


def _speech_whisper(**options: Any) -> Pipeline:
    return pipe(
        "automatic-speech-recognition",
        tiny.whisper(),
        options,
        tokenizer=tiny.whisper_tokenizer(),
        feature_extractor=tiny.whisper_features(),
    )


def _zero_shot_audio(**options: Any) -> Pipeline:
    config = transformers.ClapConfig(
        text_config={
            **ENCODER,
            "vocab_size": len(tiny.word_tokenizer()),
            "max_position_embeddings": 128,
            "pad_token_id": 0,
            "type_vocab_size": 2,
        },
        audio_config={
            "window_size": 4,
            "num_mel_bins": 8,
            "spec_size": 32,
            "patch_size": 4,
            "patch_stride": [4, 4],
            "hidden_size": 16,
            "depths": [1, 1],
            "num_attention_heads": [2, 2],
            "num_hidden_layers": 2,
            "patch_embeds_hidden_size": 8,
        },
        projection_dim=8,
    )
    model = seeded(lambda: transformers.ClapModel(config))
    features = transformers.ClapFeatureExtractor(
        feature_size=8,
        sampling_rate=tiny.AUDIO_RATE,
        hop_length=160,
        fft_window_size=400,
        max_length_s=1,
        frequency_max=8_000,
        truncation="rand_trunc",
    )
    return pipe(
        "zero-shot-audio-classification",
        model,
        options,
        tokenizer=tiny.word_tokenizer(model_input_names=PLAIN),
        feature_extractor=features,
    )


def _text_to_audio(**options: Any) -> Pipeline:
    config = transformers.VitsConfig(
        vocab_size=len(tiny.text_tokenizer()),
        hidden_size=16,
        num_hidden_layers=1,
        ffn_dim=16,
        flow_size=16,
        spectrogram_bins=9,
        upsample_initial_channel=16,
        upsample_rates=[4, 4],
        upsample_kernel_sizes=[8, 8],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
        duration_predictor_filter_channels=16,
        duration_predictor_num_flows=2,
        depth_separable_num_layers=1,
        prior_encoder_num_flows=1,
        prior_encoder_num_wavenet_layers=1,
        posterior_encoder_num_wavenet_layers=1,
        use_stochastic_duration_prediction=False,
        noise_scale=0.0,  # else the voice is random
        noise_scale_duration=0.0,
    )
    model = seeded(lambda: transformers.VitsModel(config))
    return pipe("text-to-audio", model, options, tokenizer=tiny.text_tokenizer())


def _music(**options: Any) -> Pipeline:
    codes = {"codebook_size": 32, "num_codebooks": 2}
    config = transformers.MusicgenConfig(
        text_encoder=tiny.t5_config().to_dict(),
        audio_encoder={
            "model_type": "encodec",
            "codebook_size": codes["codebook_size"],
            "codebook_dim": 16,
            "hidden_size": 16,
            "num_filters": 4,
            "num_lstm_layers": 1,
            "upsampling_ratios": [4, 2],
            "target_bandwidths": [40.0],
            "sampling_rate": tiny.AUDIO_RATE,
        },
        decoder={
            "vocab_size": codes["codebook_size"],
            "num_codebooks": codes["num_codebooks"],
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "ffn_dim": 32,
            "max_position_embeddings": 64,
            "pad_token_id": codes["codebook_size"],
            "bos_token_id": codes["codebook_size"],
        },
    )
    model = seeded(lambda: transformers.MusicgenForConditionalGeneration(config))
    model.generation_config.update(
        pad_token_id=codes["codebook_size"],
        bos_token_id=codes["codebook_size"],
        decoder_start_token_id=codes["codebook_size"],
        do_sample=False,
        guidance_scale=1.0,
    )
    return pipe("text-to-audio", model, options, tokenizer=tiny.seq2seq_tokenizer())


AUDIO = [
    Task("audio-classification", _audio_classification, _waves),
    Task("automatic-speech-recognition", _speech_ctc, _waves, variant="ctc", chunked=True),
    Task(
        "automatic-speech-recognition",
        _speech_whisper,
        _waves,
        call={"generate_kwargs": {"max_new_tokens": 5}},
        variant="whisper",
        chunked=True,
        generates=True,
    ),
    Task(
        "zero-shot-audio-classification",
        _zero_shot_audio,
        _arrays,
        call={"candidate_labels": ["a cat", "the rain"]},
        text=True,
    ),
    Task("text-to-audio", _text_to_audio, _sentences, text=True),
    Task(
        "text-to-audio",
        _music,
        _sentences,
        call={"generate_kwargs": {"max_new_tokens": 8}},
        variant="musicgen",
        text=True,
        generates=True,
    ),
]

# -------------------------------------------------------------------- several kinds of input

TEXT_CONFIG = {
    **ENCODER,
    "vocab_size": len(tiny.word_tokenizer()),
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}


def _dual(task: str, family: str, **settings: Any) -> Callable[..., Pipeline]:
    """Models that embed a text and an image: CLIP and its kin."""
    config_class, model_class = settings.pop("config"), settings.pop("model")

    def make(**options: Any) -> Pipeline:
        config = getattr(transformers, config_class)(
            text_config={**TEXT_CONFIG, "projection_dim": 16},
            vision_config={**VISION, "projection_dim": 16},
            projection_dim=16,
        )
        model = seeded(lambda: getattr(transformers, model_class)(config))
        return pipe(
            task,
            model,
            options,
            tokenizer=tiny.word_tokenizer(model_input_names=PLAIN),
            image_processor=_image_processor(family, size=SQUARE, crop_size=SQUARE),
        )

    return make


def _llava(**options: Any) -> Pipeline:
    tokenizer = tiny.text_tokenizer()
    config = transformers.LlavaConfig(
        vision_config={**VISION, "model_type": "clip_vision_model", "projection_dim": 8},
        text_config=tiny.llama_config().to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids(tiny.IMAGE),
        vision_feature_layer=-1,
    )
    model = seeded(lambda: transformers.LlavaForConditionalGeneration(config))
    model.generation_config = tiny.causal_lm().generation_config
    processor = transformers.LlavaProcessor(
        image_processor=_image_processor("CLIP", size={"shortest_edge": SIDE}, crop_size=SQUARE),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tiny.CHAT_TEMPLATE,
    )
    return pipe("image-text-to-text", model, options, processor=processor)


def _image_chats() -> list[Any]:
    return [
        [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}]
        for image, text in zip(_images(), _sentences(), strict=True)
    ]


def _qwen_audio(**options: Any) -> Pipeline:
    tokenizer = tiny.text_tokenizer()
    tokenizer.add_tokens(["<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"], special_tokens=True)
    config = transformers.Qwen2AudioConfig(
        audio_config={
            "num_mel_bins": tiny.MEL_BINS,
            "d_model": 16,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "max_source_positions": tiny.AUDIO_RATE // tiny.MEL_HOP // 2,
        },
        text_config={**tiny.llama_config(vocab_size=len(tokenizer)).to_dict(), "model_type": "llama"},
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    model = seeded(lambda: transformers.Qwen2AudioForConditionalGeneration(config))
    model.generation_config = tiny.causal_lm().generation_config
    processor = transformers.Qwen2AudioProcessor(tiny.whisper_features(), tokenizer)
    return pipe("any-to-any", model, options, processor=processor)


def _questions_about_sounds() -> list[Any]:
    return [
        {"text": f"<|audio_bos|><|AUDIO|><|audio_eos|>{text}", "audio": wave}
        for text, wave in zip(_sentences(), _arrays(), strict=True)
    ]


def _document(**options: Any) -> Pipeline:
    config = transformers.LayoutLMConfig(**TEXT_CONFIG)
    model = seeded(lambda: transformers.LayoutLMForQuestionAnswering(config))
    return pipe("document-question-answering", model, options, tokenizer=tiny.word_tokenizer())


def _donut(**options: Any) -> Pipeline:
    shape = {"image_size": SIDE, "patch_size": 4, "embed_dim": 8, "window_size": 4}
    config = transformers.DonutSwinConfig(**shape, depths=[1, 1], num_heads=[2, 2], initializer_range=0.2)
    encoder = seeded(lambda: transformers.DonutSwinModel(config))
    model = _captioner(encoder, n_embd=16)
    return pipe(
        "document-question-answering",
        model,
        options,
        tokenizer=tiny.seq2seq_tokenizer(),
        image_processor=_image_processor("Donut", size=SQUARE),
        max_new_tokens=5,  # the call takes no options of generate()
    )


def _documents() -> list[Any]:
    # With the words given, no OCR is run.
    return [
        {
            "image": _image(seed),
            "question": SENTENCES[11],
            "word_boxes": [(word, [90 * i, 10, 90 * i + 80, 40]) for i, word in enumerate(text.split())],
        }
        for seed, text in enumerate(_sentences())
    ]


def _table_question(**options: Any) -> Pipeline:
    config = transformers.TapasConfig(
        **{**TEXT_CONFIG, "type_vocab_sizes": [3, 16, 16, 2, 16, 16, 10]},
        num_aggregation_labels=4,
        aggregation_labels={0: "NONE", 1: "SUM", 2: "AVERAGE", 3: "COUNT"},
    )
    model = seeded(lambda: transformers.TapasForQuestionAnswering(config))
    words = tiny.word_tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "vocab.txt")
        names = [*words.convert_ids_to_tokens(range(len(words))), "[EMPTY]"]
        path.write_text("\n".join(names))
        tokenizer = transformers.TapasTokenizer(str(path), model_max_length=128)
    return pipe("table-question-answering", model, options, tokenizer=tokenizer)


def _tables() -> list[Any]:
    table = {"city": ["London", "Paris", "Berlin"], "people": ["9", "2", "4"]}
    return [{"table": dict(table), "query": f"How many people live in {city}?"} for city in table["city"]]


def _visual_question(**options: Any) -> Pipeline:
    # Not ViLT, the usual model: it shuffles the patches of the image.
    config = transformers.BlipConfig(
        text_config={**TEXT_CONFIG, "encoder_hidden_size": 16, "sep_token_id": 3},
        vision_config=VISION,
        projection_dim=16,
        image_text_hidden_size=16,
    )
    model = seeded(lambda: transformers.BlipForQuestionAnswering(config))
    return pipe(
        "visual-question-answering",
        model,
        options,
        tokenizer=tiny.word_tokenizer(model_input_names=PLAIN),
        image_processor=_image_processor("Blip", size=SQUARE),
        max_new_tokens=5,  # the call takes no options of generate()
    )


def _questions_about_images() -> list[Any]:
    return [{"image": image, "question": SENTENCES[i]} for i, image in enumerate(_images())]


def _captioner(encoder: transformers.PreTrainedModel, **overrides: Any) -> transformers.PreTrainedModel:
    decoder = tiny.gpt2(is_decoder=True, add_cross_attention=True, **overrides)
    model = seeded(lambda: transformers.VisionEncoderDecoderModel(encoder=encoder, decoder=decoder))
    model.generation_config = decoder.generation_config
    model.generation_config.decoder_start_token_id = decoder.config.bos_token_id
    return model


def _image_to_text(**options: Any) -> Pipeline:
    model = _captioner(seeded(lambda: transformers.ViTModel(transformers.ViTConfig(**VISION))))
    return pipe(
        "image-to-text",
        model,
        options,
        tokenizer=tiny.text_tokenizer(),
        image_processor=_image_processor("ViT", size=SQUARE),
    )


MIXED = [
    Task(
        "zero-shot-image-classification",
        _dual("zero-shot-image-classification", "CLIP", config="CLIPConfig", model="CLIPModel"),
        _images,
        call={"candidate_labels": ["a cat", "the heavy rain"]},
        text=True,
    ),
    Task(
        "zero-shot-object-detection",
        _dual(
            "zero-shot-object-detection",
            "OwlViT",
            config="OwlViTConfig",
            model="OwlViTForObjectDetection",
        ),
        lambda: [{"image": image, "candidate_labels": ["a cat", "the heavy rain"]} for image in _images()],
        call={"threshold": 0.0},
        text=True,
        chunked=True,
    ),
    Task(
        "image-text-to-text",
        _llava,
        _image_chats,
        call={"max_new_tokens": 5},
        text=True,
        generates=True,
        streams=INSTALLED.major >= 5,
    ),
    Task(
        "any-to-any",
        _qwen_audio,
        _questions_about_sounds,
        call={"max_new_tokens": 5},
        text=True,
        generates=True,
        batches=False,  # its tokenizer pads on the left, its feature extractor on the right
        since="5",
    ),
    Task(
        "document-question-answering",
        _document,
        _documents,
        # a batch takes inputs of one length only: the mask of the answers is not padded
        call={"padding": "max_length", "max_seq_len": 64},
        text=True,
        chunked=True,
    ),
    Task(
        "document-question-answering",
        _donut,
        _documents,
        variant="donut",
        chunked=True,
        generates=True,
    ),
    Task(
        "table-question-answering",
        _table_question,
        _tables,
        text=True,
        batches=False,
        streams=False,
        needs="pandas",
    ),
    Task(
        "visual-question-answering",
        _visual_question,
        _questions_about_images,
        text=True,
        generates=True,
        until="5.3",
    ),
    Task(
        "image-to-text",
        _image_to_text,
        _images,
        call={"max_new_tokens": 5},
        generates=True,
        until="5",
    ),
]

TASKS = [*TEXT, *IMAGES, *AUDIO, *MIXED]
