"""Vocabularies and sentence patterns of the filler's small grammars, one per language."""

from __future__ import annotations

Grammar = tuple[dict[str, list[str]], list[str], str, str]  # words by class, patterns, between words, sentence end


def _grammar(classes: dict[str, str], patterns: str, gap: str = " ", end: str = ".") -> Grammar:
    return {k: v.split() for k, v in classes.items()}, patterns.split("|"), gap, end


ENGLISH = _grammar(
    {
        "D": "the a this that every some one my your our her another each no",
        "A": "quiet old small green heavy early narrow broken warm distant bright careful empty golden lazy loud "
        "modern plain rapid rough secret sharp simple strange thin tired wild wooden young cheap clean deep",
        "N": "teacher garden window engine letter village doctor bottle mountain market kitchen painter river bridge "
        "winter station farmer mirror lamp basket winner school island pilot candle forest blanket machine soldier "
        "clock paper friend road tower singer harbour dinner number picture question system city table horse",
        "V": "opens watches carries follows paints forgets repairs crosses finds sells hears builds needs likes hides "
        "counts draws visits keeps breaks moves drops asks calls brings leaves",
        "R": "slowly today often again never quickly quietly yesterday outside soon always twice",
        "P": "near under behind with without above before after against inside",
    },
    "D A N V D N|D N V D A N R|R D N V D N|D N P D N V D N|D A N V R|D N V D N and D N V D N"
    "|when D N V D N D A N V D N",
)
SPANISH = _grammar(
    {
        "N": "el_perro la_casa el_río una_mujer el_niño la_ciudad un_coche la_lluvia el_mercado una_carta el_sol "
        "la_montaña el_médico la_mesa un_pájaro la_canción el_año mañana la_niña",
        "V": "mira busca lleva encuentra pierde quiere deja rompe pinta olvida espera sigue compra vende canta",
        "R": "despacio siempre nunca hoy ayer también aquí rápidamente todavía",
        "P": "cerca_de detrás_de con sin sobre hacia",
    },
    "N V N|R N V N|N V N P N|N V R|N P N V N|N V N y N V N",
)
GERMAN = _grammar(
    {
        "N": "der_Hund die_Straße das_Haus ein_Mann die_Tür das_Wasser eine_Frau der_König die_Brücke das_Mädchen "
        "ein_Brief der_Müller die_Küche das_Fenster ein_Vogel die_Zeitung der_Bär",
        "V": "sieht findet trägt öffnet sucht verliert hört braucht malt schließt kennt verkauft grüßt baut",
        "R": "heute immer plötzlich langsam nie draußen morgen früh leider",
        "P": "neben hinter über ohne für gegen",
    },
    "N V N|R V N N|N V R N|N V N P N|N V N und N V N|N P N V N",
)
FRENCH = _grammar(
    {
        "N": "le_chat la_maison un_enfant la_forêt l'école une_fenêtre le_garçon la_rivière un_livre la_nuit l'été "
        "une_pomme le_train la_clé un_étranger le_château",
        "V": "regarde cherche porte trouve perd ouvre aime dessine oublie attend suit achète répète",
        "R": "souvent jamais aujourd'hui lentement déjà bientôt là-bas hier",
        "P": "près_de derrière avec sans sous vers",
    },
    "N V N|R N V N|N V N P N|N V R|N V N et N V N",
)
CHINESE = _grammar(
    {
        "N": "老师 学生 苹果 火车 城市 朋友 小猫 天气 图书馆 医生 河流 窗户 孩子 音乐 桌子 山 月亮 电脑 "
        "早饭 花园 公司 电影",
        "V": "看见 喜欢 打开 寻找 忘记 带来 离开 画 买 等待 听 修理 认识 需要 完成",
        "A": "红色的 很大的 安静的 新的 旧的 漂亮的 奇怪的 温暖的",
        "R": "今天 昨天 常常 慢慢地 已经 明天 突然 从来不 一起",
        "P": "在 从 对 跟 为了",
    },
    "N V N|R N V N|A N V N|N R V A N|N P N V N|N V N，N V N|R，A N V N",
    "",
    "。",
)
RUSSIAN = _grammar(
    {
        "N": "дом река мальчик учитель город кошка письмо окно зима дорога поезд друг книга солнце",
        "V": "видит ищет несёт открывает любит забывает рисует ждёт слышит строит",
        "R": "сегодня медленно всегда никогда вчера опять тихо скоро",
        "P": "около под за без через",
    },
    "N V N|R N V N|N V R|N P N V N|N V N и N V N",
)
VOYAGE = _grammar(  # held out: words and patterns that no training filler has
    {
        "S": "captain sailor navigator gull lighthouse cook stowaway merchant whale anchor storm lagoon compass mast "
        "admiral reef hammock cargo voyage parrot",
        "W": "drifted shouted vanished anchored trembled whispered wandered sank returned dreamt",
        "T": "at_dawn beyond_the_horizon during_the_gale off_the_coast for_nine_days below_deck under_torn_sails",
        "Q": "weary salty drowned fearless crooked stormy silver",
    },
    "T both Q S and Q S W|our Q S W T, while those S W|had any S W T? only Q S|S, S, S: all W T|alas, Q S W T",
)
LANGUAGES = {
    "english": ENGLISH,
    "spanish": SPANISH,
    "german": GERMAN,
    "french": FRENCH,
    "chinese": CHINESE,
    "russian": RUSSIAN,
}
