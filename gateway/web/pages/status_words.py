"""The words of the status page for senders, in the languages we speak; `language` chooses by Accept-Language (RFC 9110)."""

from __future__ import annotations

import re
from collections.abc import Mapping

DEFAULT = "en"
_RANGE = re.compile(r"\s*([A-Za-z]{2,3})(?:-[A-Za-z0-9-]{1,40})?\s*(?:;\s*q\s*=\s*([01](?:\.\d{0,3})?))?\s*")

WORDS: Mapping[str, Mapping[str, str]] = {
    "en": {
        "title": "What became of your mail",
        "subject": "Subject",
        "no_subject": "(no subject)",
        "received": "Received",
        "number": "Number",
        "kept": "We have it, and it is being worked on.",
        "later": "We have it safe. Something on our side is not working; we keep trying, you need do nothing.",
        "arrived": "It arrived.",
        "partly": "It arrived, but not everything in it could be taken.",
        "twice": "It had arrived before; nothing was stored twice.",
        "waiting": "We have it safe. A person has to look at it first.",
        "refused": "It was not taken.",
        "ended": "It was received, and nothing further was made of it.",
        "answered": "The answer was:",
        "do_refused": "You may change it and send it again.",
        "do_waiting": "You need do nothing. If it is urgent, ask the people you wrote to and tell them the number above.",
        "keep": "This page shows the state of this one mail, and only to those who have its address.",
        "unknown_title": "There is nothing under this address",
        "unknown": "The link is not complete, or it is too old. Open it from the notice again, the whole of it.",
    },
    "de": {
        "title": "Was aus Ihrer Mail wurde",
        "subject": "Betreff",
        "no_subject": "(ohne Betreff)",
        "received": "Eingegangen",
        "number": "Nummer",
        "kept": "Wir haben sie, sie wird gerade bearbeitet.",
        "later": "Wir haben sie sicher. Bei uns ist etwas gestört; wir versuchen es weiter, Sie brauchen nichts zu tun.",
        "arrived": "Sie ist angekommen.",
        "partly": "Sie ist angekommen, doch nicht alles darin konnte übernommen werden.",
        "twice": "Sie war schon angekommen; nichts wurde doppelt abgelegt.",
        "waiting": "Wir haben sie sicher. Zuerst muss ein Mensch sie ansehen.",
        "refused": "Sie wurde nicht angenommen.",
        "ended": "Sie ist eingegangen, und es wurde nichts weiter daraus gemacht.",
        "answered": "Die Antwort war:",
        "do_refused": "Sie können sie ändern und noch einmal senden.",
        "do_waiting": "Sie brauchen nichts zu tun. Wenn es eilt, nennen Sie den Angeschriebenen die Nummer oben.",
        "keep": "Diese Seite zeigt den Stand dieser einen Mail, und nur denen, die ihre Adresse haben.",
        "unknown_title": "Unter dieser Adresse ist nichts",
        "unknown": "Der Link ist nicht vollständig oder zu alt. Öffnen Sie ihn noch einmal aus der Nachricht, und zwar ganz.",
    },
    "fr": {
        "title": "Ce que votre message est devenu",
        "subject": "Objet",
        "no_subject": "(sans objet)",
        "received": "Reçu",
        "number": "Numéro",
        "kept": "Nous l'avons, il est en cours de traitement.",
        "later": "Nous l'avons en sûreté. Une panne nous retarde ; nous réessayons, vous n'avez rien à faire.",
        "arrived": "Il est arrivé.",
        "partly": "Il est arrivé, mais une partie n'a pas pu être reprise.",
        "twice": "Il était déjà arrivé ; rien n'a été enregistré deux fois.",
        "waiting": "Nous l'avons en sûreté. Quelqu'un doit d'abord le regarder.",
        "refused": "Il n'a pas été accepté.",
        "ended": "Il a été reçu, sans autre suite.",
        "answered": "La réponse était :",
        "do_refused": "Vous pouvez le corriger et l'envoyer de nouveau.",
        "do_waiting": "Vous n'avez rien à faire. Si c'est urgent, donnez le numéro ci-dessus à vos correspondants.",
        "keep": "Cette page montre l'état de ce seul message, et seulement à ceux qui ont son adresse.",
        "unknown_title": "Il n'y a rien à cette adresse",
        "unknown": "Le lien est incomplet ou trop ancien. Ouvrez-le de nouveau depuis l'avis, en entier.",
    },
    "es": {
        "title": "Qué ha sido de su correo",
        "subject": "Asunto",
        "no_subject": "(sin asunto)",
        "received": "Recibido",
        "number": "Número",
        "kept": "Lo tenemos y se está tramitando.",
        "later": "Lo tenemos a salvo. Algo falla en nuestro lado; seguimos intentándolo, usted no tiene que hacer nada.",
        "arrived": "Ha llegado.",
        "partly": "Ha llegado, pero no se ha podido aceptar todo su contenido.",
        "twice": "Ya había llegado antes; no se ha guardado nada dos veces.",
        "waiting": "Lo tenemos a salvo. Primero tiene que verlo una persona.",
        "refused": "No ha sido aceptado.",
        "ended": "Se recibió y no se ha hecho nada más con él.",
        "answered": "La respuesta fue:",
        "do_refused": "Puede corregirlo y enviarlo de nuevo.",
        "do_waiting": "No tiene que hacer nada. Si es urgente, dé el número de arriba a quienes escribió.",
        "keep": "Esta página muestra el estado de este único correo, y solo a quienes tienen su dirección.",
        "unknown_title": "No hay nada en esta dirección",
        "unknown": "El enlace está incompleto o es demasiado antiguo. Ábralo de nuevo desde el aviso, entero.",
    },
    "uk": {
        "title": "Що сталося з вашим листом",
        "subject": "Тема",
        "no_subject": "(без теми)",
        "received": "Отримано",
        "number": "Номер",
        "kept": "Лист у нас, він обробляється.",
        "later": "Лист у нас у безпеці. У нас стався збій; ми пробуємо далі, вам нічого робити не потрібно.",
        "arrived": "Лист прибув.",
        "partly": "Лист прибув, але не все в ньому вдалося прийняти.",
        "twice": "Цей лист уже надходив раніше; нічого не збережено двічі.",
        "waiting": "Лист у нас у безпеці. Спочатку його має переглянути людина.",
        "refused": "Лист не прийнято.",
        "ended": "Лист отримано, і більше з ним нічого не зроблено.",
        "answered": "Відповідь була:",
        "do_refused": "Ви можете змінити його й надіслати ще раз.",
        "do_waiting": "Вам нічого робити не потрібно. Якщо це терміново, назвіть адресатам номер угорі.",
        "keep": "Ця сторінка показує стан лише цього листа й лише тим, хто має її адресу.",
        "unknown_title": "За цією адресою нічого немає",
        "unknown": "Посилання неповне або застаріле. Відкрийте його з повідомлення ще раз, повністю.",
    },
}


def language(accept_language: str) -> str:
    """The language of ours that the header wants most; English where it wants none of them."""
    best, best_weight = DEFAULT, 0.0
    for item in accept_language[:500].split(","):
        match = _RANGE.fullmatch(item)
        if match is None or match[1].lower() not in WORDS:
            continue
        weight = float(match[2]) if match[2] else 1.0
        if weight > best_weight:
            best, best_weight = match[1].lower(), weight
    return best
