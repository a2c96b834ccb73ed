// Posts a photo with nodemailer: node send.js PORT FILE RECIPIENT
const nodemailer = require("nodemailer");
const [port, path, to] = process.argv.slice(2);
const transport = nodemailer.createTransport({ host: "127.0.0.1", port: Number(port), secure: false, ignoreTLS: true });
transport
  .sendMail({ from: "ann@example.org", to, subject: "by nodemailer", text: "Our holiday", attachments: [{ path }] })
  .then((info) => console.log(info.response))
  .catch((error) => { console.error(error.message); process.exit(1); });
