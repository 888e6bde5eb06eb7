/** Numbers as people read them.  Units are those of the command line: KiB, MiB. */

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
const whole = new Intl.NumberFormat("en");

export function bytes(value: number): string {
  let rest = value;
  let unit = 0;
  while (rest >= 1024 && unit < UNITS.length - 1) {
    rest /= 1024;
    unit += 1;
  }
  return `${unit === 0 || rest >= 100 ? Math.round(rest) : rest.toFixed(1)} ${UNITS[unit]}`;
}

export function count(value: number): string {
  return whole.format(value);
}

/** "1 connection", "2 connections". */
export function several(value: number, one: string): string {
  return `${count(value)} ${one}${value === 1 ? "" : "s"}`;
}

/** A share of a whole; never 0 % of something, never 100 % of less than all. */
export function share(part: number, all: number): string {
  if (all <= 0) return "–";
  const percent = (100 * part) / all;
  if (part > 0 && percent < 0.1) return "<0.1 %";
  if (part < all && percent > 99.9) return ">99.9 %";
  return `${percent < 10 && percent > 0 ? percent.toFixed(1) : Math.round(percent)} %`;
}

export function age(seconds: number | null): string {
  if (seconds === null) return "–";
  for (const [unit, name] of [[86400, "d"], [3600, "h"], [60, "min"]] as const) {
    if (seconds >= unit) return `${Math.floor(seconds / unit)} ${name}`;
  }
  return `${Math.floor(seconds)} s`;
}

/** An address and a port as they are dialled; IPv6 in brackets. */
export function place(address: string, port: number | null): string {
  const host = address.includes(":") ? `[${address}]` : address;
  return port === null ? host : `${host}:${port}`;
}
