"""One process of a job that only talks: prints what it heard, a JSON line per question."""

import json

from imagen_video_jax import distributed
from imagen_video_jax.errors import UserError


def heard(ask):
    try:
        return ask()
    except UserError as error:
        return [str(error), error.exit_code]


def refuse():
    raise UserError("the folder is full", 5)


if __name__ == "__main__":
    number, count = distributed.start()

    def own_facts():
        if number == 1:
            raise UserError("no such file: data")
        return {}

    answers = [
        [number, count],
        heard(lambda: distributed.from_first(lambda: {"step": 7 + number})),
        heard(lambda: distributed.from_first(refuse)),
        heard(lambda: distributed.agree(lambda: {"code": "1", "seed": "3"})),
        heard(lambda: distributed.agree(lambda: {"code": "1", "seed": str(3 + number), "x" * number: "y" * 200})),
        heard(lambda: distributed.agree(own_facts)),
    ]
    print(json.dumps(answers))
