"use strict";

const part = name => document.getElementById(name);
const form = part("form"), player = part("player"), drop = part("drop");
let video = null, asking = null, recorder = null;

// ---------------------------------------------------------------- the video

function take(file) {
  video = file;
  part("error").hidden = true;
  part("chosen").hidden = false;
  part("chosen").textContent = `${file.name} (${(file.size / 1e6).toFixed(1)} MB)`;
  URL.revokeObjectURL(player.src);
  player.srcObject = null;
  player.src = URL.createObjectURL(file);
  player.hidden = false;
}

player.addEventListener("error", () => {
  player.hidden = true;
  if (video) part("chosen").textContent += ": this browser can't play it, but the models may be able to read it";
  timesWork(false);
});
part("file").addEventListener("change", event => event.target.files.length && take(event.target.files[0]));
for (const kind of ["dragover", "drop"]) window.addEventListener(kind, event => event.preventDefault());
drop.addEventListener("dragover", () => drop.classList.add("over"));
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", event => {
  drop.classList.remove("over");
  if (event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
});

if (navigator.mediaDevices && window.MediaRecorder) part("record").hidden = false;
part("record").addEventListener("click", () => recorder ? recorder.stop() : record().catch(error => {
  fail(`The camera can't be used: ${error.message}`);
}));

async function record() {
  const stream = await navigator.mediaDevices.getUserMedia({video: {width: {ideal: 640}}, audio: false});
  const parts = [];
  player.srcObject = stream;
  player.hidden = false;
  player.play();
  player.scrollIntoView({block: "nearest"});
  recorder = new MediaRecorder(stream);
  const end = setTimeout(() => recorder && recorder.stop(), 1000 * form.dataset.mostSeconds);
  recorder.ondataavailable = event => parts.push(event.data);
  recorder.onstop = () => {
    clearTimeout(end);
    stream.getTracks().forEach(track => track.stop());
    const type = recorder.mimeType;
    recorder = null;
    part("record").textContent = "Record with the camera";
    take(new File(parts, type.includes("mp4") ? "recording.mp4" : "recording.webm", {type}));
  };
  recorder.start();
  part("record").textContent = "Stop the recording";
}

// ---------------------------------------------------------------- the question

form.addEventListener("submit", event => {
  event.preventDefault();
  if (!video) return fail("Choose a video first.");
  if (video.size > form.dataset.mostBytes) {
    return fail(`${video.name} is larger than ${form.dataset.most}, the most that is taken.`);
  }
  ask(video, part("model").value);
});
part("cancel").addEventListener("click", () => asking && asking.abort());

function ask(file, model) {
  const request = asking = new XMLHttpRequest();
  let read = 0, said = {error: "The answer broke off: is the server still there?"};
  request.open("POST", `ask?${new URLSearchParams({model, name: file.name})}`);
  request.setRequestHeader("Content-Type", "application/octet-stream");
  request.upload.onprogress = event => tell("Sending the video", event.loaded / event.total);
  request.onprogress = () => {
    const lines = request.responseText.slice(read).split("\n");
    read = request.responseText.length - lines.pop().length;
    for (const line of lines) told(JSON.parse(line));
  };
  function told(state) {
    if (state.ahead) tell(`${state.ahead} before you`, null);
    else if (state.doing !== undefined) tell(state.doing, state.share);
    else said = state;
  }
  request.onload = () => {
    if (request.status === 200) request.onprogress();
    else said = refusal(request.responseText);
    if (said.answer) show(said.answer);
    else fail(said.error);
  };
  request.onerror = () => fail("The server can't be reached, or it broke off the sending of the video.");
  request.onloadend = () => busy(false);
  part("answer").innerHTML = '<p class="empty">The answer comes here.</p>';
  part("error").hidden = true;
  busy(true);
  tell("Sending the video", 0);
  request.send(file);
}

function refusal(text) {
  try {
    return JSON.parse(text);
  } catch {
    return {error: `The server says: ${text}`};
  }
}

function busy(yes) {
  part("ask").disabled = yes;
  part("answer").setAttribute("aria-busy", yes);
  for (const name of ["cancel", "progress"]) part(name).hidden = !yes;
  if (!yes) part("status").textContent = "";
}

function tell(doing, share) {
  part("status").textContent = doing && `${doing} …`;
  if (share === null) part("progress").removeAttribute("value");
  else part("progress").value = share;
}

function fail(words) {
  part("error").textContent = words;
  part("error").hidden = false;
}

// ---------------------------------------------------------------- the answer

function show(answer) {
  part("answer").innerHTML = answer;  // of this page's server, which escapes all names
  timesWork(!player.hidden);
  part("said").focus({preventScroll: true});
  if (part("answer").getBoundingClientRect().top > window.innerHeight / 2) part("answer").scrollIntoView();
}

function timesWork(yes) {
  for (const time of document.querySelectorAll(".time")) time.disabled = !yes;
}

part("answer").addEventListener("click", event => {
  if (event.target.matches(".time")) player.currentTime = event.target.dataset.seconds;
});
