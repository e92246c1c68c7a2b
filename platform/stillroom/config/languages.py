"""Languages of texts, by ISO 639 code."""

from typing import Annotated

from pydantic import AfterValidator

from stillroom.errors import UserError

AUTO = "auto"  # detected from the texts
MULTIPLE, UNKNOWN = "mul", "und"  # ISO 639-2: several languages; not determined

LANGUAGES = {
    "af": "Afrikaans",
    "am": "Amharic",
    "ar": "Arabic",
    "as": "Assamese",
    "az": "Azerbaijani",
    "be": "Belarusian",
    "bg": "Bulgarian",
    "bn": "Bengali",
    "br": "Breton",
    "bs": "Bosnian",
    "ca": "Catalan",
    "cs": "Czech",
    "cy": "Welsh",
    "da": "Danish",
    "de": "German",
    "el": "Greek",
    "en": "English",
    "eo": "Esperanto",
    "es": "Spanish",
    "et": "Estonian",
    "eu": "Basque",
    "fa": "Persian",
    "fi": "Finnish",
    "fr": "French",
    "ga": "Irish",
    "gl": "Galician",
    "gu": "Gujarati",
    "ha": "Hausa",
    "he": "Hebrew",
    "hi": "Hindi",
    "hr": "Croatian",
    "hu": "Hungarian",
    "hy": "Armenian",
    "id": "Indonesian",
    "ig": "Igbo",
    "is": "Icelandic",
    "it": "Italian",
    "ja": "Japanese",
    "ka": "Georgian",
    "kk": "Kazakh",
    "km": "Khmer",
    "kn": "Kannada",
    "ko": "Korean",
    "ku": "Kurdish",
    "ky": "Kyrgyz",
    "la": "Latin",
    "lo": "Lao",
    "lt": "Lithuanian",
    "lv": "Latvian",
    "mk": "Macedonian",
    "ml": "Malayalam",
    "mn": "Mongolian",
    "mr": "Marathi",
    "ms": "Malay",
    "my": "Burmese",
    "ne": "Nepali",
    "nl": "Dutch",
    "no": "Norwegian",
    "or": "Odia",
    "pa": "Punjabi",
    "pl": "Polish",
    "ps": "Pashto",
    "pt": "Portuguese",
    "ro": "Romanian",
    "ru": "Russian",
    "sa": "Sanskrit",
    "si": "Sinhala",
    "sk": "Slovak",
    "sl": "Slovenian",
    "so": "Somali",
    "sq": "Albanian",
    "sr": "Serbian",
    "st": "Sesotho",
    "sv": "Swedish",
    "sw": "Swahili",
    "ta": "Tamil",
    "te": "Telugu",
    "th": "Thai",
    "tl": "Tagalog",
    "tr": "Turkish",
    "ug": "Uyghur",
    "uk": "Ukrainian",
    "ur": "Urdu",
    "uz": "Uzbek",
    "vi": "Vietnamese",
    "xh": "Xhosa",
    "yi": "Yiddish",
    "yo": "Yoruba",
    "zh": "Chinese",
    "zu": "Zulu",
    MULTIPLE: "several languages",
    UNKNOWN: "not determined",
}


def _known(language: str) -> str:
    if language in (AUTO, *LANGUAGES):
        return language
    names = {name.lower(): code for code, name in LANGUAGES.items()}
    primary = language.lower().replace("_", "-").partition("-")[0]  # of zh-CN
    code = names.get(language.lower(), primary if primary in LANGUAGES else None)
    fix = f"a code of ISO 639-1 such as de, {MULTIPLE} for texts of several languages, or {AUTO}"
    raise ValueError(f"{language!r} is no known language: use {code or fix}")


def check_language(language: str, where: str) -> str:
    """The language, which must be a key of LANGUAGES or `auto`.

    Raises:
        UserError: when it is neither.
    """
    try:
        return _known(language)
    except ValueError as error:
        problem, _, fix = str(error).partition(": ")
        raise UserError(where, problem, fix.capitalize()) from None


Language = Annotated[str, AfterValidator(_known)]
