"use strict";
// Chapter 18: the bands of the log-mel spectrogram, and which of them hear a tone.
mllama.figure("mel_bands", figure => {
  const TOP = 8000, STEP = 40, WIDE = 440, HIGH = 120, LEFT = 8, LOW = 22;
  const tone = figure.slider({ label: "Tone", min: STEP, max: TOP - STEP, step: STEP, value: 440, format: n => `${n} Hz` });
  const bands = figure.slider({ label: "Bands", min: 10, max: 80, step: 10, value: 20 });
  const even = figure.toggle({ label: "Even steps in Hz instead of mel", value: false });

  // Slaney's scale: even steps up to 1,000 Hz, equal ratios above.
  const toMel = hertz => (hertz < 1000 ? 3 * hertz / 200 : 15 + 27 * Math.log(hertz / 1000) / Math.log(6.4));
  const toHertz = mel => (mel < 15 ? 200 * mel / 3 : 1000 * Math.exp((mel - 15) / 27 * Math.log(6.4)));
  const corners = () => [...Array(bands.value + 2).keys()].map(i => {
    const share = i / (bands.value + 1);
    return even.value ? TOP * share : toHertz(toMel(TOP) * share);
  });
  // How much each band counts a pitch: triangles of area 1.
  const weights = pitch => {
    const at = corners();
    return [...Array(bands.value).keys()].map(i => {
      const [left, middle, right] = at.slice(i, i + 3);
      const inside = Math.min((pitch - left) / (middle - left), (right - pitch) / (right - middle));
      return Math.max(0, inside) * 2 / (right - left);
    });
  };

  figure.drawing({ width: WIDE + 2 * LEFT, height: HIGH + LOW + 26 }, svg => {
    const at = corners(), heard = weights(tone.value), x = hertz => LEFT + WIDE * hertz / TOP;
    const highest = Math.max(...at.slice(2).map((right, i) => 2 / (right - at[i])));
    const y = weight => 14 + HIGH * (1 - weight / highest);
    for (let i = 0; i < bands.value; i++) {
      const [left, middle, right] = at.slice(i, i + 3), hears = heard[i] > 0;
      svg.path([[x(left), y(0)], [x(middle), y(2 / (right - left))], [x(right), y(0)]],
        { ink: hears ? "orange" : "blue", width: hears ? 2.4 : 0.9 });
    }
    svg.line(x(tone.value), 8, x(tone.value), y(0), { ink: "ink", width: 1.5, "stroke-dasharray": "4 3" });
    for (const hertz of [0, 2000, 4000, 6000, 8000])
      svg.text(x(hertz), y(0) + 17, hertz ? `${hertz / 1000} kHz` : "0", { size: 12, anchor: hertz === TOP ? "end" : hertz ? "middle" : "start" });
    svg.line(LEFT, y(0), LEFT + WIDE, y(0), { ink: "grey", width: 1 });
  });

  figure.values(() => weights(tone.value));

  figure.words(() => {
    const heard = weights(tone.value), at = corners();
    const which = [...heard.keys()].filter(i => heard[i] > 0);
    const below = at.slice(1, -1).filter(middle => middle <= 1000).length;
    const centres = `${below} of ${bands.value} bands have their middle at 1,000 Hz or below.`;
    if (!which.length) return `No band hears a tone of ${tone.value} Hz. ${centres}`;
    const names = which.length === 1 ? `Band ${which[0]} hears` : `Bands ${which.join(" and ")} hear`;
    const [left, right] = [at[which[0]], at[which.at(-1) + 2]].map(Math.round);
    return `${names} a tone of ${tone.value} Hz: all that sounds from ${left} to ${right} Hz goes into the same `
      + `${which.length === 1 ? "number" : "numbers"}. ${centres}`;
  });
});
