"""Small generated file sets in the published layouts of KuaiRand and MIND: same names, columns and quirks."""

from __future__ import annotations

import json
import random
from pathlib import Path

KUAIRAND_LOG = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)
_RANGES = "follow_user_num,follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num,"
_RANGES += "friend_user_num_range,register_days,register_days_range"
KUAIRAND_USERS = "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author," + _RANGES
KUAIRAND_USERS += "".join(f",onehot_feat{k}" for k in range(18))
KUAIRAND_VIDEOS = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,server_height,"
    "music_id,music_type,tag"
)
FIRST_MS = 1_650_812_400_000
"""25 April 2022, 15:00 UTC."""


def kuairand(folder: Path, users: int = 30, rows: int = 900, videos: int = 40) -> Path:
    """Exposures of two weeks; user u likes videos of its own parity."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(3)
    lines = [KUAIRAND_LOG]
    for k in range(rows):
        user, video = rng.randrange(users), rng.randrange(videos)
        time = FIRST_MS + k * (13 * 86_400_000 // rows) + 7
        click = int(rng.random() < (0.7 if user % 2 == video % 2 else 0.3))
        labels = [click, int(click and rng.random() < 0.3), 0, 0, 0, 0, int(click and rng.random() < 0.6)]
        play = rng.randrange(200_000) if click else rng.randrange(3000)
        hour = (time // 3_600_000 + 8) % 24
        cells = [user, video, 20220425, hour * 100, time, *labels, play, 60_000, 0, 0, 0, 0, k % 3]
        lines.append(",".join(map(str, cells)))
    (folder / "log_standard_4_22_to_5_08_pure.csv").write_text("\n".join(lines) + "\n")
    lines = [KUAIRAND_USERS]
    for u in range(users):
        ranges = f'{u},"(0,{10 + u % 2}]",1,"[1,10)",2,"[1,5)",799,730+'
        hot = ",".join("" if k == 4 and u % 5 == 0 else str(float((u + k) % 3)) for k in range(18))
        lines.append(f"{u},full_active,0,{-124 if u % 3 else 1},{u % 2},{ranges},{hot}")
    (folder / "user_features_pure.csv").write_text("\n".join(lines) + "\n")
    lines = [KUAIRAND_VIDEOS]
    for v in range(videos):
        tag = '"12,65"' if v % 4 == 0 else "" if v % 7 == 0 else str(v % 5)
        lines.append(f"{v},{v % 6},NORMAL,2022-04-10,Kmovie,0.0,{1000.0 * (v + 1)},720.0,1280.0,55,9.0,{tag}")
    (folder / "video_features_basic_pure.csv").write_text("\n".join(lines) + "\n")
    return folder


def mind(folder: Path, users: int = 12, lines: int = 120, news: int = 40) -> Path:
    """Impression lines of six days with one click each, and the clicks before them; two news are referred to only."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(5)
    earlier = {u: [f"N{(u + 3 * k) % news}" for k in range(u % 4)] for u in range(users)}
    rows = []
    for k in range(lines):
        user = rng.randrange(users)
        shown = rng.sample(range(news + 2), 5)
        clicked = max(shown, key=lambda n: (n % 2 == user % 2, rng.random()))
        cells = " ".join(f"N{n}-{int(n == clicked)}" for n in shown)
        hour, minute = divmod(k * 11 % (24 * 60), 60)
        clock = f"{(hour - 1) % 12 + 1}:{minute:02d}:00 {'AM' if hour < 12 else 'PM'}"
        day = 9 + k * 6 // lines
        rows.append(f"{k + 1}\tU{user}\t11/{day}/2019 {clock}\t{' '.join(earlier[user])}\t{cells}")
    (folder / "behaviors.tsv").write_text("\n".join(rows) + "\n")
    rows = []
    for n in range(news):
        title = json.dumps([{"Label": "x", "Type": "G", "WikidataId": f"Q{n % 4}", "Confidence": 1.0}])
        abstract = "" if n % 5 == 0 else f'The "{n}" story, told at length'
        rows.append(f"N{n}\tnews\tnews{n % 3}\tHeadline number {n}\t{abstract}\thttps://x\t{title}\t[]")
    (folder / "news.tsv").write_text("\n".join(rows) + "\n")
    return folder
