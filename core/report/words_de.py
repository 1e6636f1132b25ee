"""German words of the report; core/report/words_en.py has the same keys."""

GERMAN = {
    "and": "und",
    "to": "bis",
    "points": "Punkte",
    "or": "oder",
    # --- document
    "title": "Pruning-Bericht: {name}",
    "lead": "{runs} von {model}, gemessen {when}. Tabellen, Abbildungen und Sätze sind von Espalier {version} aus "
    "den Dateien der Läufe erzeugt; nichts wird gerundet, bevor es verglichen wird, und nichts wird gedeutet. Zu "
    "jeder Zeile stehen ihre Läufe im Anhang (Tabelle {trace}).",
    "one_run": "1 vollständiger Lauf",
    "runs": "{count} vollständige Läufe",
    "on_day": "am {first}",
    "between_days": "vom {first} bis {last}",
    "methods": "Methoden",
    "environment": "Umgebung",
    "results": "Ergebnisse",
    "discussion": "Diskussion",
    "appendix": "Anhang: Herkunft jeder Zahl",
    "references": "Literatur",
    "table": "Tabelle",
    "figure": "Abbildung",
    "continued": "Fortsetzung",
    # --- families
    "dense": "dicht",
    "family_dense": "Dichtes und quantisierte Modelle",
    "family_cut": "Echte Schnitte",
    "family_mask": "Masken: Nullen, nicht kleiner",
    "family_depth": "Ganze Schichten",
    "family_recovered": "Nachtraining: vorher und nachher",
    "family_tasks": "Einzelne Aufgaben",
    "family_speed": "Geschwindigkeit und Speicher",
    # --- sizes, settings
    "size": "{ratio} {where}",
    "of_layers_some": "der Schichten {first}–{last}",
    "of_layers_all": "aller Schichten",
    "of_whole_model": "der Parameter des ganzen Modells",
    "of_stream": "des Residualstroms",
    "layers_some": "Schichten {first}–{last}",
    "layers_all": "alle Schichten",
    "whole_model": "des ganzen Modells",
    "stream": "der Residualstrom",
    "only_attention": "nur Attention",
    "only_mlp": "nur MLP",
    "query_heads": "Query-Köpfe",
    "round_to": "Breiten auf {value} gerundet",
    "no_rounding": "Breiten nicht gerundet",
    "allocation": "Aufteilung {value}",
    "same_sizes": "gleiche Größen",
    "reconstruct": "neu angepasst",
    "calibrated_on": "kalibriert auf {value}",
    "calibrated_with": "{samples} × {length} Kalibrierungs-Token",
    "lora": "LoRA",
    "distillation": "Destillation",
    "revision": "Revision {value}",
    # --- columns
    "method": "Methode",
    "model": "Modell",
    "seeds": "Seeds",
    "removed": "Entfernt",
    "zeros": "Nullen",
    "zeros_in": "Nullen",
    "dense_model": "Dicht",
    "parameters": "Parameter",
    "millions": "Mio.",
    "on_disk": "Auf Platte",
    "perplexity": "Perplexität",
    "mean": "Mittel der sieben Aufgaben",
    "mean_short": "Mittel der 7",
    "perplexity_with_article": "die Perplexität",
    "mean_with_article": "das Mittel der sieben Aufgaben",
    "kl_per_token": "KL zum dichten Modell",
    "top1_agreement": "Top-1-Übereinstimmung",
    "prefill_tokens_per_second": "Prefill",
    "decode_tokens_per_second": "Decode",
    "first_token_milliseconds": "Erstes Token",
    "peak_memory_bytes": "Spitzenspeicher",
    "macs": "Multiplikationen",
    "guessing": "Raten",
    "pruned": "Beschnitten",
    "recovered": "Nachtrainiert",
    "gain": "Gewinn",
    "interval": "95-%-Intervall",
    "came_back": "Kam zurück",
    "setting": "Einstellung",
    "value": "Wert",
    "run": "Lauf",
    "row": "Zeile",
    "measured_with": "Gemessen mit",
    "protocol": "Protokoll",
    "quality": "Größe",
    "used_by": "Läufe",
    "against": "Verglichen mit",
    "state": "Zustand",
    "why": "Grund",
    "name": "Name",
    "tokens_per_second": "Token/s",
    # --- protocol in short
    "p_window": "Fenster {value}",
    "p_shots": "{value} Beispiele",
    "p_limit": "erste {value} Dokumente",
    "p_limit_none": "alle Dokumente",
    "p_max_tokens": "erste {value} Token",
    "p_max_tokens_none": "alle Token",
    "p_bos": "mit BOS",
    "p_bos_not": "ohne BOS",
    "p_chat_template": "Chat-Vorlage",
    "p_chat_template_not": "ohne Chat-Vorlage",
    "p_split": "Teil {value}",
    "p_batch": "Batch {value}",
    # --- methods section
    "m_model": "Das Modell ist {model} ({layers} Decoder-Schichten, {parameters} Parameter{revision}; Fingerabdruck "
    "der Gewichte {fingerprint}). Gemessen wurde an den gespeicherten Gewichten, in {dtype}.",
    "m_revision": ", Revision {value}",
    "m_methods": "Verglichen werden {methods}.",
    "m_where": "Beschnitten wurden {where}; Anteile beziehen sich auf das, was eine Methode dort "
    "beschneidet{target}, und die Tabellen nennen den Anteil am ganzen Modell, Einbettungen eingeschlossen, der "
    "wirklich entfernt oder auf null gesetzt wurde.",
    "m_heads": "Köpfe werden als {heads} entfernt; verbleibende MLP-Breiten sind auf ein Vielfaches von {round_to} "
    "aufgerundet.",
    "m_target": " (oder auf das ganze Modell, wo ein Block einer Tabelle es sagt)",
    "m_kv_groups": "ganze KV-Gruppen",
    "m_query_heads": "Query-Köpfe, gleich viele je KV-Gruppe",
    "m_masks": "Masken setzen Gewichte auf null und behalten alle Formen: Ein solches Modell ist nicht kleiner. Sie "
    "stehen in eigenen Tabellen und Abbildungen.",
    "m_calibration": "Kalibrierte Methoden ({methods}) lesen {samples} Fenster zu {length} Token aus {corpus}, Teil "
    "{split}, gezogen mit dem Seed des Laufs.",
    "m_allocation_owl": "Aufteilung auf die Schichten: OWL{cite}.",
    "m_reconstruct": "Wo eine Zeile „neu angepasst“ sagt, sind die Schichten, die entfernte Einheiten lesen, auf "
    "dem Kalibrierungstext durch kleinste Quadrate neu angepasst.",
    "m_seeds": "Läufe, die sich nur im Seed unterscheiden, sind eine Zeile: Mittelwert über {counts} Seeds, ± "
    "Standardfehler über die Seeds (s/√n). Zeilen ohne Zahl der Seeds sind einzelne Läufe, ± Standardfehler des "
    "Wertes selbst.",
    "m_no_seeds": "Jeder Wert stammt aus einem einzelnen Lauf; ± ist der Standardfehler des Wertes selbst.",
    "m_lora": "Nachtraining durch LoRA{cite}: {settings}.",
    "m_distillation": "Nachtraining durch Destillation aus dem dichten Modell{cite}: {settings}.",
    "m_perplexity": "Die Perplexität wurde auf {corpus}{split} gemessen, in Fenstern von {window} Token ohne "
    "Überlappung ({windows} Fenster, {tokens} Token, {bos}; {protocol}).",
    "m_split": " (Teil {value})",
    "m_tasks": "Die Genauigkeit ohne Beispiele (zero-shot) wurde{harness}{cite} auf {tasks} gemessen ({protocols}), "
    "{documents}{template}.",
    "m_tasks_shots": "Die Genauigkeit mit {shots} Beispielen wurde{harness}{cite} auf {tasks} gemessen "
    "({protocols}), {documents}{template}.",
    "m_harness": " mit lm-eval {value}",
    "m_all_documents": "auf allen Dokumenten",
    "m_first_documents": "auf den ersten {value} Dokumenten jeder Aufgabe",
    "m_template": ", jede Frage in der Chat-Vorlage",
    "m_normalised": "Nach längennormierter Log-Likelihood: {tasks}; nach Log-Likelihood: {others}.",
    "m_mean": "Im Mittel zählt jede Aufgabe gleich; sein Standardfehler ist √(Σ se²)/7.",
    "m_fidelity": "KL-Divergenz zum dichten Modell (nats je Token) und Top-1-Übereinstimmung wurden auf {corpus} "
    "gemessen, Fenster {window}, in {dtype} ({protocol}).",
    "m_speed": "Die Geschwindigkeit wurde auf dem sonst unbenutzten Gerät gemessen, dichtes und beschnittenes "
    "Modell im Wechsel: Mediane von {n} Wiederholungen, Eingaben von {prompt} Token, {decoded} erzeugte Token, "
    "Batch {batch}, {dtype} auf {device}{kernels} ({protocol}).",
    "m_kernels": ", auf {kernels}-Kernen",
    "m_statistics": "Unterschiede zum dichten Modell sind auf denselben Dokumenten und Fenstern genommen, wo beide "
    "Läufe sie beantwortet haben, sonst wie bei unabhängigen Werten. ▲ und ▼ bezeichnen Werte, die auf dem "
    "5-%-Niveau signifikant besser und schlechter sind als die des dichten Modells (exakter McNemar-Test{mcnemar} "
    "für Aufgaben, Normalverteilung für Mittelwerte und Perplexität), nach Holm{holm} über alle Läufe dieses "
    "Berichts korrigiert, in Familien: Mittelwerte über Aufgaben; Perplexitäten; jede weitere Größe{tasks}. Bei "
    "mehreren Seeds ist eine Zeile bezeichnet, wenn jeder Seed es ist.",
    "m_tasks_marked": "; alle einzelnen Aufgaben",
    "m_tasks_not_marked": ". Einzelne Aufgaben sind nicht bezeichnet",
    "m_bold": "Fett ist der beste Wert eines Blocks; ein Block enthält Zeilen gleicher verlangter Größe.",
    "m_origin": "{runs} wurden anderswo gemessen und importiert: {origins}.",
    # --- notes under tables
    "n_marks": "▲ signifikant besser, ▼ schlechter als dicht (5 %, Holm). ± Standardfehler.",
    "n_gain_marks": "▲ signifikant besser, ▼ schlechter als vor dem Nachtraining (5 %, Holm). ± Standardfehler.",
    "n_leak": "† beurteilt auf Text, den Kalibrierung oder Nachtraining gelesen haben, oder auf Text gleicher "
    "Herkunft.",
    "n_disturbed": "‡ neben anderer Last auf dem Gerät gemessen.",
    "on_kernels": "{label}, auf {kernels}-Kernen",
    "n_times": "× ist der Wert geteilt durch den des dichten Modells, wo möglich im selben Lauf gemessen.",
    # --- captions
    "c_environment": "Umgebung der Läufe.",
    "c_dense": "Bezugspunkte: das dichte Modell und das dichte Modell mit gerundeten Gewichten.",
    "c_cut": "Echte Schnitte: Köpfe und Kanäle entfernt.",
    "c_mask": "Masken: Gewichte auf null gesetzt, Formen erhalten.",
    "c_depth": "Ganze Decoder-Schichten entfernt.",
    "c_recovered": "Nachtraining: {quality} vorher und nachher.",
    "c_tasks_dense": "Genauigkeit je Aufgabe: Bezugspunkte.",
    "c_tasks_cut": "Genauigkeit je Aufgabe: echte Schnitte.",
    "c_tasks_mask": "Genauigkeit je Aufgabe: Masken.",
    "c_tasks_depth": "Genauigkeit je Aufgabe: ganze Schichten entfernt.",
    "c_tasks_recovered": "Genauigkeit je Aufgabe: nachtrainierte Modelle.",
    "c_speed": "Geschwindigkeit und Speicher ({protocol}; {device}).",
    "c_protocols": "Protokolle, genau wie sie bei jedem Wert gespeichert sind.",
    "c_trace": "Läufe hinter jeder Zeile: Kennung, dichter Lauf, Protokolle (Tabelle {protocols}).",
    "c_not_made": "Läufe der Auswahl ohne Zahlen.",
    "c_curve": "{quality} nach dem Anteil am ganzen Modell, der {done} ist; eine Linie je Methode und Einstellung, "
    "Balken sind ± ein Standardfehler.",
    "c_curve_masks": "{quality} nach dem Anteil am ganzen Modell, der auf null gesetzt ist (Nullen, nicht kleiner); "
    "Balken sind ± ein Standardfehler.",
    "c_pairs": "{quality} vor (hohl) und nach dem Nachtraining; Balken sind ± ein Standardfehler.",
    "c_tradeoff": "{quality} nach der Decode-Geschwindigkeit, als Vielfaches des dichten Modells im selben Lauf "
    "(Batch {batch}, {device}).",
    "c_beyond": "Jenseits der Achse: {values}.",
    "done_removed": "entfernt",
    "x_removed": "entfernter Anteil am ganzen Modell",
    "x_zeros": "auf null gesetzter Anteil am ganzen Modell",
    "x_decode": "Decode-Geschwindigkeit, Vielfaches des dichten Modells",
    "log": "logarithmisch",
    "lower": "niedriger ist besser",
    "higher": "höher ist besser",
    "before": "beschnitten",
    "after": "nachtrainiert",
    # --- sentences
    "s_dense": "{model}: {values}.",
    "s_best_low": "Bei {size} ist {quality} am niedrigsten mit {best}: {value}",
    "s_best_high": "Bei {size} ist {quality} am höchsten mit {best}: {value}",
    "s_next": "; dann folgt {second}: {value}",
    "s_worst_high": "; am höchsten ist {worst}: {value}",
    "s_worst_low": "; am niedrigsten ist {worst}: {value}",
    "s_ratio": "{second} ist das {times}-Fache von {best} (95-%-Intervall {low} bis {high}, auf denselben "
    "Fenstern): Das Intervall {verdict}.",
    "s_difference": "{second} weniger {best} ist {difference} (95-%-Intervall {low} bis {high}, {how}): Das "
    "Intervall {verdict}.",
    "s_how_paired": "auf denselben Dokumenten",
    "s_how_independent": "Werte als unabhängig genommen",
    "s_how_seeds": "über Seeds, nach Welchs t",
    "s_holds_zero": "enthält die Null",
    "s_not_zero": "enthält die Null nicht",
    "s_holds_one": "enthält die 1",
    "s_not_one": "enthält die 1 nicht",
    "s_only": "Bei {size} wurde nur {best} gemessen: {values}.",
    "s_marked": "Von {count} Zeilen sind {worse} in {quality} signifikant schlechter und {better} signifikant "
    "besser als dicht; {rest} sind davon nicht zu unterscheiden.",
    "s_recovered": "{label}: {quality} ging von {before} auf {after} (Gewinn {gain}; 95-%-Intervall {low} bis "
    "{high}, {how}; es {verdict}){back}.",
    "s_back": "; von dem, was der Schnitt kostete, kamen {share} zurück",
    "s_fastest": "Gegen dicht im selben Lauf decodiert {label} am schnellsten: {value} Token/s, "
    "das {times}-Fache von dicht ({dense}); der Unterschied ist {verdict}.",
    "s_significant": "signifikant",
    "s_not_significant": "nicht signifikant",
    "s_kernels": "{label}, decodiert mit dem {times}-Fachen von dicht: {value} Token/s gegen {dense}.",
    "s_guessing": "Innerhalb von zwei Standardfehlern vom Raten auf diesen Dokumenten: {labels}.",
    "s_front": "In {quality} und {axis} nicht dominiert (keine andere Zeile ist in beidem mindestens so gut und in "
    "einem besser): {labels}.",
    "axis_size": "entferntem Anteil",
    "axis_speed": "Decode-Geschwindigkeit",
    "axis_times": "Decode-Geschwindigkeit als Vielfachem des dichten Modells",
    "s_speeds": "Maskierte Modelle decodieren mit dem {masks}-Fachen von dicht, wirklich kleinere mit dem "
    "{cuts}-Fachen.",
    "s_masks_size": "Die maskierten Modelle belegen {mask} auf der Platte, das dichte Modell {dense}.",
    # --- discussion
    "d_intro": "Was die Tabellen über Größen und Familien hinweg sagen, gezählt. Ursachen stehen nicht in den "
    "Zahlen, und es werden keine genannt.",
    "d_wins": "{quality}: bester Wert des Blocks ist {wins}; Blöcke mit mindestens zwei Zeilen: {blocks}.",
    "d_win": "{method} ({count})",
    "d_recovered": "Das Nachtraining verbesserte {quality} in {count} von {all} Zeilen; das 95-%-Intervall des "
    "Gewinns schließt die Null in {clear} aus.",
    "d_random": "Gegen zufälliges Entfernen gleicher Größe, {quality}: besser in {better} von {all} Zeilen ({clear} "
    "mit einem 95-%-Intervall, das die Null ausschließt){exceptions}.",
    "d_exceptions": "; nicht besser: {labels}",
    "d_closest": "Am nächsten am dichten Modell in {quality} ist unter den echten Schnitten, die mindestens {share} "
    "des Modells entfernen: {label}, {value} (dicht {dense}).",
    "d_zeros": "{quality}, Nullen gegen echte Schnitte: Bei {count} von {all} Größen ist eine maskierte Zeile, in der "
    "mindestens so viel des Modells null ist, besser als der beste echte Schnitt. Bei der größten: {mask}, {zeros} "
    "Nullen, {kept}; {cut}, {removed} entfernt, {reached}. Nullen lassen das Modell so groß, wie es war.",
    "d_versus_size": "{quality}, {cut} gegen {mask} bei gleicher Größe (der entfernte Anteil und der nächste Anteil "
    "von Nullen, der nicht kleiner ist; je die beste Zeile): {mask} ist bei {count} von {all} Größen besser: {pairs}. "
    "Auf der Platte belegt {cut} bei diesen Größen {small}, {mask} {large}.",
    "d_versus_pair": "{removed} entfernt {reached}, {zeros} Nullen {kept}",
    "d_versus_speed": "{quality}, bei gleicher Geschwindigkeit, so nahe gemessen wurde: {cut} decodiert mit dem "
    "{fast}-Fachen des dichten Modells, {mask} mit dem {other}-Fachen; das eine durch das andere ist {ratio} "
    "(95-%-Intervall {low} bis {high}), und das Intervall {verdict}. Sie kommen auf {reached} und {kept}.",
    "d_limits": "Was diese Zahlen begrenzt:",
    "l_one_seed": "{count} von {all} Zeilen haben nur einen Seed, bei Methoden, in denen er entscheidet: {labels}.",
    "l_limit": "Aufgaben wurden nur auf den ersten {n} Dokumenten bewertet: etwa ±{points} Punkte bei 95 %.",
    "l_mixed": "{quality} wurde auf {count} Arten gemessen; Werte verschiedener Arten stehen getrennt und werden "
    "nie voneinander abgezogen.",
    "l_leak": "Zeilen mit † sind auf Text beurteilt, den Kalibrierung oder Nachtraining gelesen haben, oder auf "
    "Text gleicher Herkunft: {labels}.",
    "l_disturbed": "Zeilen mit ‡ sind neben anderer Last gemessen: {labels}.",
    "l_no_dense": "Ohne einen ebenso beurteilten dichten Lauf, und darum ohne Unterschiede: {labels}.",
    "l_not_made": "{count} Läufe der Auswahl haben keine Zahlen (Tabelle {table}).",
    "l_devices": "Die Läufe kommen aus {count} Umgebungen (Tabelle {table}); Geschwindigkeiten verschiedener Geräte "
    "sind nicht vergleichbar.",
    "l_diverged": "Abgebrochene Trainings: {labels}.",
    "l_none": "Keine der Prüfungen hat etwas gefunden.",
    "more": "und {count} weitere",
    "nothing": "Kein Lauf der Auswahl hat Zahlen.",
}
