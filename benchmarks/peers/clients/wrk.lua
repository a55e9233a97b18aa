-- For wrk: POST the file $BENCH_BODY with the headers in $BENCH_HEADERS ("Name: value" lines); print totals and every
-- latency, in microseconds, for figures.py.
local file = assert(io.open(os.getenv("BENCH_BODY"), "rb"))
wrk.method, wrk.body = "POST", file:read("*a")
file:close()
for name, value in os.getenv("BENCH_HEADERS"):gmatch("([^\n:]+): ([^\n]+)") do
  wrk.headers[name] = value
end

function done(summary, latency, _)
  local e = summary.errors
  local totals = { summary.requests, summary.duration, summary.bytes, e.connect, e.read, e.write, e.status, e.timeout }
  local latencies = {}
  for i = 1, #latency do
    local us, count = latency(i)
    latencies[i] = string.format("%.0f:%.0f", us, count)
  end
  print("TOTALS " .. table.concat(totals, " "))
  print("LATENCIES " .. table.concat(latencies, " "))
end
